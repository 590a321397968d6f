"""What `check_split` and `check_dataset` find in data sets, and what they say."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gptkit.conformance.dataset import check_labels, check_loaded
from gptkit.errors import PluginError
from gptkit.plugin import IGNORE, Data, Split
from gptkit.testing import LetterCodec, check_split

Change = Callable[[Tensor, Tensor, Tensor], object]


class Windows(Split):
    """Four letters from each of 300 places; `change` may spoil them."""

    def __init__(self, change: Change = lambda x, y, indices: (x, y)) -> None:
        self.change = change

    def __len__(self) -> int:
        return 300

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x = (indices[:, None] + torch.arange(4)) % 10
        return self.change(x, (x + 1) % 10, indices)  # type: ignore[return-value]


def one_bad(x: Tensor, y: Tensor, indices: Tensor) -> object:
    y[indices == 299] = -99
    return x, y


def masked(x: Tensor, y: Tensor, indices: Tensor) -> object:
    return x, torch.full_like(y, IGNORE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y, i: x, "must give (x, y)"),
        (
            lambda x, y, i: (x.T, y.T),
            "must have the shape (B, block_size) = (256, 4), not (4, 256)",
        ),
        (lambda x, y, i: (x[1:], y[1:]), "= (256, 4), not (255, 4)"),
        (lambda x, y, i: (x, y.float()), "y of Windows[indices] must be int64, not torch.float32"),
        (lambda x, y, i: (x, y.numpy()), "must be a tensor, not ndarray"),
        (one_bad, "must be in 0 .. 9, or IGNORE (-100): there is -99"),
        (lambda x, y, i: (x + 1, y), "x of Windows[indices] must be in 0 .. 9: there is 10"),
        (masked, "every target is masked"),
        (lambda x, y, i: (x.sort(0).values, y), "depend on the index alone"),
    ],
)
def test_a_bad_split_is_told_what_is_wrong(change: Change, said: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_split(Windows(change), vocab_size=10, block_size=4)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        (lambda seed, step, size: list(range(size)), "must be a tensor, not list"),
        (lambda seed, step, size: torch.zeros(3), "must be int64, not torch.float32"),
        (lambda seed, step, size: torch.randint(300, (size,)), "the same whenever it is called"),
        (lambda seed, step, size: torch.full((size,), 300), "must be in 0 .. 299"),
    ],
)
def test_a_bad_order_is_told_what_is_wrong(indices: Callable[..., Tensor], said: str) -> None:
    split = Windows()
    split.indices = indices  # type: ignore[method-assign]
    with pytest.raises(AssertionError) as caught:
        check_split(split, vocab_size=10, block_size=4)
    assert said in str(caught.value)


def test_before_training_only_what_is_at_hand_is_looked_at() -> None:
    """In a test all windows are looked at."""
    seen: set[int] = set()

    def see(x: Tensor, y: Tensor, indices: Tensor) -> object:
        seen.update(indices.tolist())
        return x, y

    train, val = Windows(see), Windows()
    data = Data(train, val, LetterCodec(), vocab_size=26, block_size=4)
    check_loaded(data, "letters")
    assert max(seen) == 299
    seen.clear()
    train.at_hand = 100
    check_loaded(data, "letters")
    assert max(seen) == 99
    check_split(train, vocab_size=26, block_size=4)
    assert max(seen) == 299
    train.at_hand = 301
    with pytest.raises(PluginError, match=r"letters: Windows.at_hand must be 1 .. 300, not 301"):
        check_loaded(data, "letters")


@pytest.mark.parametrize(
    ("labels", "classes", "said"),
    [
        (None, ("a",), "Data has classes, but Data.train.labels is None"),
        (torch.zeros(300, dtype=torch.int64), (), "has labels, but Data.classes is empty"),
        (torch.zeros(299, dtype=torch.int64), ("a",), "the shape (items,) = (300,), not (299,)"),
        (torch.zeros(300), ("a",), "must be int64, not torch.float32"),
        (torch.arange(300), ("a", "b"), "must be in 0 .. 1: there is 2"),
    ],
)
def test_labels_belong_to_classes(labels: Tensor, classes: tuple[str, ...], said: str) -> None:
    train, val = Windows(), Windows()
    train.labels = val.labels = labels
    data = Data(train, val, LetterCodec(), vocab_size=26, block_size=4, classes=classes)
    with pytest.raises(AssertionError) as caught:
        check_labels(data)
    assert said in str(caught.value)
