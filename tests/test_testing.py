import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ConfigDict, PrivateAttr
from torch import Tensor

from gptkit.codec import Codec, ImageCodec
from gptkit.errors import PluginError
from gptkit.plugin import IGNORE, Callback, Data, Dataset, Split, TrainState
from gptkit.testing import (
    LetterCodec,
    check_callback,
    check_codec,
    check_dataset,
    check_options,
    check_split,
    drive,
    make_state,
)

CODEC = '''from gptkit.codec import TextCodec
{imports}

class Numbers(TextCodec):
    """Digits as tokens."""

    contract = 1

    @property
    def token_bytes(self):
        return [b"%d" % digit for digit in range(10)]

    def encode(self, prompt: str) -> list[int]:
        return [int(digit) for digit in prompt or "0"]
'''


@pytest.fixture
def numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Codec:
    """A good codec in a module of its own, as a plugin has it."""
    return install_codec(tmp_path, monkeypatch, "plugin_numbers")


def install_codec(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    *,
    imports: str = "",
    announced: bool = True,
) -> Codec:
    (folder / f"{name}.py").write_text(CODEC.format(imports=imports))
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    if announced:
        (info / "entry_points.txt").write_text(f"[gptkit.codecs]\n{name} = {name}:Numbers\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    codec: Codec = importlib.import_module(name).Numbers()
    return codec


class Windows(Split):
    """Windows of four tokens over the numbers 0 to 9, again and again."""

    stride = 4

    def __len__(self) -> int:
        return 30

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x = (indices[:, None] + torch.arange(4)) % 10
        return x, (x + 1) % 10


class Masked(Windows):
    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(indices)
        y[:, :2] = IGNORE
        return x, y


class Narrow(Windows):
    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(indices)
        return x.to(torch.int32), y


class FloatTargets(Windows):
    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(indices)
        return x, y.float()


class Short(Windows):
    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(indices)
        return x[:, :3], y[:, :3]


class BeyondVocabulary(Windows):
    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(indices)
        return x, y + 9


class MaskedByMinusOne(Windows):
    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(indices)
        return x - 1, y


class Restless(Windows):
    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return super().__getitem__(torch.randint(len(self), indices.shape))


class BatchDependent(Windows):
    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(indices)
        return (x + len(indices)) % 10, y


class Strideless(Windows):
    stride = 0


class StridingTooFar(Windows):
    stride = 5


def dataset_of(codec: Codec, split: type[Split] = Windows) -> Dataset:
    class Numbers(Dataset):
        """Numbers, to be predicted one by one."""

        contract = 1

        windows: int = 30
        """How many there are."""

        def load(self) -> Data:
            return Data(split(), split(), codec, vocab_size=10, block_size=4)

    return Numbers()


class Patience(Callback):
    """Ends training when the validation loss stops falling."""

    contract = 1

    evaluations: int = 3
    """How many to wait for a lower loss."""
    _best: float = PrivateAttr(1e9)
    _waited: int = PrivateAttr(0)
    _bias: Tensor = PrivateAttr(default_factory=lambda: torch.zeros(3))

    def on_eval_end(self, state: TrainState) -> None:
        self._waited += 1
        if state.val_loss is not None and state.val_loss < self._best:
            self._best, self._waited = state.val_loss, 0
            self._bias = state.model.get_parameter("bias").detach().clone()
        state.stop = self._waited >= self.evaluations

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "waited": self._waited, "bias": self._bias}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._best, self._waited, self._bias = state["best"], state["waited"], state["bias"]


class PatienceOfMine(Patience):
    """Waits for longer; its events are those of the class that it extends."""

    evaluations: int = 5
    """How many to wait for a lower loss."""


@pytest.mark.parametrize("callback", [Patience(), Patience(evaluations=1), PatienceOfMine()])
def test_a_good_callback_passes(callback: Callback, tmp_path: Path) -> None:
    check_callback(callback, tmp_path)


def undocumented() -> Callback:
    class Silent(Patience):
        evaluations: int = 3
        """How many to wait for."""

        def on_step_end(self, state: TrainState) -> None: ...

    return Silent()


def with_a_field_unexplained() -> Callback:
    class Terse(Patience):
        """Ends training."""

        margin: float = 0.0

        def on_step_end(self, state: TrainState) -> None: ...

    return Terse()


def thawed() -> Callback:
    class Thawed(Patience):
        """Ends training, after as many evaluations as whoever comes by may say."""

        model_config = ConfigDict(frozen=False)

        def on_step_end(self, state: TrainState) -> None: ...

    return Thawed()


def lenient() -> Callback:
    class Lenient(Patience):
        """Ends training, and overlooks misspelled options."""

        model_config = ConfigDict(extra="ignore")

        def on_step_end(self, state: TrainState) -> None: ...

    return Lenient()


def idle() -> Callback:
    class Idle(Callback):
        """Does nothing at any event."""

        contract = 1

        def work(self) -> None: ...

    return Idle()


def forgetful() -> Callback:
    class Forgetful(Patience):
        """Takes back all but the tensor."""

        def on_step_end(self, state: TrainState) -> None: ...

        def load_state_dict(self, state: Mapping[str, Any]) -> None:
            self._best, self._waited = state["best"], state["waited"]

    return Forgetful()


def keyless() -> Callback:
    class Keyless(Patience):
        """Keeps its state under keys that are no JSON keys."""

        def on_step_end(self, state: TrainState) -> None: ...

        def state_dict(self) -> dict[str, Any]:
            return {"by step": {1: 2.0}}

    return Keyless()


def listing() -> Callback:
    class Listing(Patience):
        """Keeps a list."""

        def state_dict(self) -> Any:
            return [1]

    return Listing()


def careless() -> Callback:
    class Careless(Patience):
        """Closes what it may not have opened."""

        def on_fit_end(self, state: TrainState) -> None:
            state.metrics.pop("opened")

    return Careless()


def talkative() -> Callback:
    class Talkative(Patience):
        """Prints on every process."""

        def on_step_end(self, state: TrainState) -> None:
            print(state.step)

    return Talkative()


def drifting() -> Callback:
    class Drifting(Callback):
        """Makes the rate smaller from step to step, and forgets how often it did."""

        contract = 1
        _rate: float = PrivateAttr(default=0.1)

        def on_step_start(self, state: TrainState) -> None:
            self._rate /= 2
            state.optimizer.param_groups[0]["lr"] = self._rate

    return Drifting()


class Noisy(Callback):
    """Adds noise to the gradients, and draws a number at the start."""

    contract = 1

    def on_fit_start(self, state: TrainState) -> None:
        torch.rand(())

    def on_backward_end(self, state: TrainState) -> None:
        for parameter in state.model.parameters():
            assert parameter.grad is not None
            parameter.grad += 0.1 * torch.randn_like(parameter)


def test_random_numbers_of_torch_need_no_state(tmp_path: Path) -> None:
    check_callback(Noisy(), tmp_path)


class Averaging(Callback):
    """Keeps a mean of the weights over all steps, and the same in lists in its state."""

    contract = 1
    _means: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    def on_step_end(self, state: TrainState) -> None:
        for name, parameter in state.model.named_parameters():
            mean = self._means.setdefault(name, torch.zeros_like(parameter))
            mean.lerp_(parameter.detach(), 1 / state.step)

    def state_dict(self) -> dict[str, Any]:
        return {"nested": [{"means": list(self._means.values())}, None]}

    def weights(self) -> Mapping[str, Mapping[str, Tensor]] | None:
        return {"mean": self._means} if self._means else None

    def load_weights(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._means = dict(weights["mean"])


def misshapen() -> Callback:
    class Misshapen(Averaging):
        """Offers one tensor alone."""

        def weights(self) -> Mapping[str, Mapping[str, Tensor]] | None:
            return {"mean": {"weight": torch.zeros(3)}}

    return Misshapen()


def unrestored() -> Callback:
    class Unrestored(Averaging):
        """Takes nothing back."""

        def load_weights(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None: ...

    return Unrestored()


def destructive() -> Callback:
    class Destructive(Patience):
        """Spoils the weights."""

        def on_backward_end(self, state: TrainState) -> None:
            state.model.get_parameter("bias").grad = torch.full((3,), torch.nan)

    return Destructive()


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (undocumented, "Silent needs a docstring"),
        (with_a_field_unexplained, "Terse.margin needs a sentence below it"),
        (thawed, "options must be frozen"),
        (lenient, "unknown options must be refused"),
        (idle, "Idle overrides no event"),
        (forgetful, "load_state_dict must restore state_dict"),
        (keyless, r"state_dict\(\)\['by step'\] has the key 1, an int: keys should be texts"),
        (listing, r"Listing.state_dict\(\) must be a dict, not list"),
        (destructive, "Destructive makes weight infinite or not a number"),
        (careless, "Careless.on_fit_end must work even if on_fit_start failed"),
        (talkative, "Talkative prints on process 1"),
        (drifting, "with Drifting a resumed training ends with another (weight|bias)"),
        (misshapen, "Misshapen.weights must have the model's shapes"),
        (unrestored, "Unrestored.load_weights must restore weights"),
    ],
)
def test_a_bad_callback_fails(make: Callable[[], Callback], fault: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=fault or None):
        check_callback(make(), tmp_path)


class Opening(Callback):
    """Opens a file at the start and closes it at the end, whether or not it was opened."""

    contract = 1

    fail: bool = False
    """Fail to open it."""
    _events: list[str] = PrivateAttr(default_factory=list)

    def on_fit_start(self, state: TrainState) -> None:
        self._events.append("start")
        if self.fail:
            raise OSError("no file")

    def on_step_start(self, state: TrainState) -> None:
        self._events.append("step")

    def on_backward_end(self, state: TrainState) -> None:
        assert all(parameter.grad is not None for parameter in state.model.parameters())
        self._events.append("backward")

    def on_step_end(self, state: TrainState) -> None:
        assert state.loss.isfinite()
        self._events.append(f"done {state.step}")

    def on_eval_end(self, state: TrainState) -> None:
        assert state.val_loss is not None
        self._events.append("eval")

    def on_save_end(self, state: TrainState) -> None:
        assert state.run_dir is None or state.checkpoint is not None
        self._events.append("save")

    def on_fit_end(self, state: TrainState) -> None:
        self._events.append("end")
        if self.fail:
            assert isinstance(state.error, OSError)


def test_a_callback_with_weights_and_nested_tensors_passes(tmp_path: Path) -> None:
    check_callback(Averaging(), tmp_path)


def test_drive_goes_through_every_event() -> None:
    callback, state = Opening(), make_state(steps=2)
    before = state.model.get_parameter("weight").detach().clone()
    drive(callback, state)
    assert callback._events == [
        "start", "step", "backward", "done 1", "eval", "save",
        "step", "backward", "done 2", "eval", "save", "end",
    ]  # fmt: skip
    assert not torch.equal(state.model.get_parameter("weight"), before)


def test_drive_stops_when_the_callback_says_so() -> None:
    state = make_state(steps=50)
    state.val_loss = None
    callback = Patience(evaluations=1)
    callback.load_state_dict({"best": -1.0, "waited": 0, "bias": torch.zeros(3)})
    drive(callback, state)
    assert state.step == 1


def test_drive_ends_as_training_does_where_the_start_fails() -> None:
    callback = Opening(fail=True)
    with pytest.raises(OSError, match="no file"):
        drive(callback, make_state())
    assert callback._events == ["start", "end"]


def test_states_for_tests_are_alike_and_apart(tmp_path: Path) -> None:
    one, two = make_state(tmp_path), make_state(tmp_path)
    assert torch.equal(one.model.get_parameter("weight"), two.model.get_parameter("weight"))
    drive(Opening(), one)
    assert two.step == 0
    assert one.run_dir == tmp_path
    assert [group["initial_lr"] for group in two.optimizer.param_groups] == [0.1]
    assert isinstance(two.sample(3, 0), bytes)


@pytest.mark.parametrize("split", [Windows, Masked])
def test_a_good_split_passes(split: type[Split]) -> None:
    check_split(split(), vocab_size=10, block_size=4)


@pytest.mark.parametrize(
    "split",
    [
        Narrow,
        FloatTargets,
        Short,
        BeyondVocabulary,
        MaskedByMinusOne,
        Restless,
        BatchDependent,
        Strideless,
        StridingTooFar,
    ],
)
def test_a_bad_split_fails(split: type[Split]) -> None:
    torch.manual_seed(0)
    with pytest.raises(AssertionError):
        check_split(split(), vocab_size=10, block_size=4)


def test_a_good_dataset_passes_and_is_returned(numbers: Codec) -> None:
    data = check_dataset(dataset_of(numbers), prompts=["123", "9"])
    assert (data.vocab_size, data.block_size, data.codec) == (10, 4, numbers)


def test_a_dataset_with_a_bad_split_fails(numbers: Codec) -> None:
    with pytest.raises(AssertionError):
        check_dataset(dataset_of(numbers, Narrow))


def test_a_dataset_that_loads_something_else_each_time_fails(numbers: Codec) -> None:
    offsets = iter(range(9))

    class Moving(Windows):
        def __init__(self) -> None:
            self.offset = next(offsets)

        def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
            return super().__getitem__(indices + self.offset)

    with pytest.raises(AssertionError, match="must be repeatable"):
        check_dataset(dataset_of(numbers, Moving))


def test_a_batch_size_that_is_none_fails(tmp_path: Path) -> None:
    class Halving(Callback):
        """Halves the batch size."""

        contract = 1

        def on_eval_end(self, state: TrainState) -> None:
            state.batch_size /= 2  # type: ignore[assignment]

    with pytest.raises(PluginError, match=r"state\.batch_size should be a whole number above 0"):
        check_callback(Halving(), tmp_path)


def test_a_callback_without_a_contract_fails(tmp_path: Path) -> None:
    class Undeclared(Callback):
        """Does nothing."""

    with pytest.raises(AssertionError, match="Undeclared needs contract = 1, not None"):
        check_callback(Undeclared(), tmp_path)


def test_a_dataset_without_documentation_fails(numbers: Codec) -> None:
    class Silent(Dataset):
        contract = 1

        def load(self) -> Data:
            return dataset_of(numbers).load()

    with pytest.raises(AssertionError, match="Silent needs a docstring"):
        check_dataset(Silent())


def test_a_prompt_that_the_codec_cannot_read_fails(numbers: Codec) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        check_dataset(dataset_of(numbers), prompts=["12", "x"])
    with pytest.raises(AssertionError):
        check_codec(numbers, prompts=["9"], vocab_size=9)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"imports": "import torch"}, "plugin_wrong must not import torch"),
        ({"imports": "print('hello')"}, "plugin_wrong must not print when it is imported: hello"),
        ({"announced": False}, 'announce Numbers: .* NAME = "plugin_wrong:Numbers"'),
    ],
)
def test_a_codec_in_a_bad_module_fails(
    options: dict[str, Any], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = install_codec(tmp_path, monkeypatch, "plugin_wrong", **options)
    with pytest.raises(AssertionError, match=fault):
        check_codec(wrong, vocab_size=10)


LETTERS = LetterCodec()


def wrong(kind: type[Codec] = LetterCodec, **attributes: Any) -> Codec:
    """A codec of which these properties and methods are wrong."""
    replaced = {
        name: staticmethod(value) if callable(value) else property(lambda self, value=value: value)
        for name, value in attributes.items()
    }
    made: Codec = type("Wrong", (kind,), {"__module__": __name__, "contract": 1, **replaced})()
    return made


class Flag(ImageCodec):
    """An image of four pixels."""

    contract = 1

    @property
    def width(self) -> int:
        return 2

    @property
    def height(self) -> int:
        return 2

    @property
    def colors(self) -> list[tuple[int, int, int]]:
        return [(0, 0, 0), (255, 255, 255)]

    def encode(self, prompt: str) -> list[int]:
        return [2]

    def decode(self, tokens: Sequence[int]) -> bytes:
        return bytes(tokens)

    def sheet(self, samples: Sequence[Sequence[int]], *, prompt: str = "", kept: int = 0) -> bytes:
        return b"".join(map(bytes, samples))


class Suffixless(LetterCodec):
    contract = 1
    suffix = "txt"


class Forgetting(LetterCodec):
    contract = 1
    letters: Any = "abc"


@pytest.mark.parametrize(
    ("codec", "fault"),
    [
        (LETTERS, "must announce LetterCodec"),
        (Suffixless(), 'Suffixless.suffix must begin with a dot: "txt"'),
        (Forgetting(letters={1: 2}), "Forgetting must survive JSON"),
        (Forgetting(letters=float("nan")), "Forgetting must survive JSON"),
        (wrong(encode=lambda prompt: []), r"starts must have at least one token each"),
        (wrong(encode=lambda prompt: [], starts=[[0]]), r"encode\(''\) must give at least one"),
        (wrong(encode=lambda prompt: [26]), "starts must hold ids below 26, got 26"),
        (wrong(encode=lambda prompt: [-1]), "must hold ids below 26, got -1"),
        (wrong(encode=lambda prompt: [1.0]), "must hold Python's integers, got <class 'float'>"),
        (wrong(encode=lambda prompt: "a"), "must be a list of ids, got <class 'str'>"),
        (wrong(starts=[]), "starts must hold at least one start"),
        (wrong(starts=[[1], [1, 2]]), "starts must have the same number of tokens"),
        (wrong(stop_tokens=[1]), "stop_tokens must be a tuple"),
        (wrong(stop_tokens=(26,)), "stop_tokens must hold ids below 26, got 26"),
        (wrong(length=1), "length must be more than the tokens of a start"),
        (wrong(decode=lambda tokens: "abc"), "decode must return bytes"),
        (wrong(decode=lambda tokens: b"abc"), r"decode\(\[0\]\) must be token_bytes\[0\]"),
        (wrong(decode=lambda tokens: LETTERS.decode(tokens)[:1]), "decode must join token_bytes"),
        (wrong(token_bytes=[b"a"]), "token_bytes must have an item for every id: 26, not 1"),
        (wrong(token_bytes=["a"] * 26, decode=lambda tokens: b""), r"must be bytes, got 'a'"),
        (wrong(tokenizer_json=lambda: "[]"), "tokenizer_json must be the text of a tokenizer.json"),
        (wrong(Flag, width=0), "length must be more than the tokens of a start"),
        (wrong(Flag, colors=[(0, 0, 300)] * 2), "colors must be 0 to 255"),
        (wrong(Flag, colors=[(0, 0)] * 2), "colors must be red, green and blue"),
        (wrong(Flag, starts=[[2], [3]]), "starts must be one per class"),
        (wrong(Flag, sheet=lambda samples: "x"), "sheet must return bytes"),
        (wrong(Flag, preview=lambda contents, *, width: 1), "preview must be text or None"),
        (wrong(Flag), "must announce Wrong"),
    ],
)
def test_a_bad_codec_fails(codec: Codec, fault: str) -> None:
    with pytest.raises(AssertionError, match=fault):
        check_codec(codec, vocab_size=26)


def test_a_start_that_is_no_text_comes_before_a_prompt() -> None:
    pieces = [b"", *LETTERS.token_bytes[1:]]
    with pytest.raises(AssertionError, match=r"encode\('b'\) must begin with a start, \[0\]"):
        check_codec(wrong(token_bytes=pieces), prompts=["b"], vocab_size=26)
    with pytest.raises(AssertionError, match="must announce"):  # all else is right
        check_codec(wrong(token_bytes=pieces), prompts=["ab"], vocab_size=26)


def test_the_letter_codec_writes_what_it_reads() -> None:
    codec = LetterCodec()
    assert codec.encode("gptkit") == [6, 15, 19, 10, 8, 19]
    assert codec.decode(codec.encode("gptkit")) == b"gptkit"
    assert codec.encode("") == [0]


def test_options_that_do_not_survive_json_fail() -> None:
    class Fickle(Patience):
        """Reads its options in another way than it writes them."""

        words: Any = ()
        """What to say."""

    with pytest.raises(AssertionError):
        check_options(Fickle(words=("a", "b")))
    check_options(Fickle(words=["a", "b"]))
