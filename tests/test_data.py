import inspect
import mmap
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gptkit.data.order import walk
from gptkit.errors import PluginError
from gptkit.plugin import IGNORE, Data, DataError, Split, TokenFile

BLOCK = 5


class Items(Split):
    """Items with targets of their own: item i is all i, and its target 1000 + i, partly masked."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x = indices[:, None].repeat(1, BLOCK)
        y = x + 1000
        y[:, 0] = IGNORE
        return x, y


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """A file of tokens in which every token is its own position."""
    path = tmp_path / "tokens"
    np.arange(200, dtype=np.uint16).tofile(path)
    return path


def stream(path: Path, tokens: int, *, start: int = 0) -> TokenFile:
    return TokenFile(path, "uint16", start=start, stop=start + tokens, block_size=BLOCK)


def test_a_batch_is_a_pure_function_of_seed_and_step() -> None:
    first = Items(1000).indices(7, 3, 64)
    Items(1000).indices(7, 4, 64)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(Items(1000).indices(7, 3, 64), first)
    assert (first.dtype, first.shape) == (torch.int64, (64,))


def test_the_order_of_the_data_is_the_one_that_old_runs_were_trained_in() -> None:
    order = [Items(1000).indices(1337, step, 4).tolist() for step in (0, 1, 10**6)]
    assert order == [[985, 347, 78, 213], [994, 93, 590, 720], [664, 125, 305, 833]]


def test_batches_differ_by_step_and_by_seed() -> None:
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (2**62, 0), (0, 2**40)]
    batches = {tuple(Items(10**6).indices(s, t, 8).tolist()) for s, t in pairs}
    assert len(batches) == len(pairs)


@pytest.mark.parametrize("size", [1, 3, 5 * 10**9])
def test_batches_stay_within_the_split(size: int) -> None:
    drawn = torch.cat([Items(size).indices(1, step, 100) for step in range(20)])
    assert drawn.min() >= 0
    assert drawn.max() < size
    assert drawn.max() >= size * 0.9 - 1
    assert drawn.min() <= size * 0.1


@pytest.mark.parametrize("batch_size", [1, 32])
def test_every_window_is_as_likely(batch_size: int) -> None:
    steps = 6400 // batch_size
    drawn = torch.cat([Items(16).indices(5, s, batch_size) for s in range(steps)])
    expected = 6400 / 16
    chi_square = (drawn.bincount(minlength=16) - expected).square().sum() / expected
    assert 2 < chi_square < 40  # 15 degrees of freedom; below 2 it would be a rota, not chance


def test_neighbouring_steps_are_not_related() -> None:
    drawn = torch.stack([Items(1000).indices(5, s, 32) for s in range(200)]).double()
    together = torch.stack((drawn[:-1].flatten(), drawn[1:].flatten()))
    assert abs(torch.corrcoef(together)[0, 1]) < 0.05


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_a_walk_over_a_stream_counts_every_target_once(numbered: Path, batch_size: int) -> None:
    for tokens in range(BLOCK + 1, 4 * BLOCK + 2):  # one to four windows, with every remainder
        counted: list[int] = []
        for x, y in walk(stream(numbered, tokens, start=3), batch_size):
            assert x.shape == y.shape
            assert len(x) <= batch_size
            kept = y != IGNORE
            assert torch.equal(y[kept], x[kept] + 1)
            counted += y[kept].tolist()
        assert counted == list(range(4, 3 + tokens)), tokens


def test_a_walk_is_the_same_in_any_batch_size_and_again(numbered: Path) -> None:
    split = stream(numbered, 4 * BLOCK + 3)

    def whole(batch_size: int) -> Tensor:
        return torch.cat([torch.cat((x, y), dim=1) for x, y in walk(split, batch_size)])

    first = whole(1)
    for batch_size in (1, 2, 3, 4, 100):
        assert torch.equal(whole(batch_size), first)


@pytest.mark.parametrize(("size", "batch_size"), [(1, 1), (6, 3), (7, 3), (2, 100)])
def test_a_walk_over_items_takes_each_once_and_as_it_is(size: int, batch_size: int) -> None:
    split = Items(size)
    batches = list(walk(split, batch_size))
    expected_x, expected_y = split[torch.arange(size)]
    assert torch.equal(torch.cat([x for x, _ in batches]), expected_x)
    assert torch.equal(torch.cat([y for _, y in batches]), expected_y)
    assert [len(x) for x, _ in batches[:-1]] == [batch_size] * (len(batches) - 1)


@pytest.mark.parametrize("batch_size", [1, 2, 10])
def test_a_few_batches_of_a_walk_are_spread_over_the_split(batch_size: int) -> None:
    split, batches = Items(100), 20 // batch_size
    spread, _ = split[torch.arange(0, 100, 5)]  # images of ten classes, in their order, say
    found = list(walk(split, batch_size, batches))
    assert [len(x) for x, _ in found] == [batch_size] * batches
    assert torch.equal(torch.cat([x for x, _ in found]), spread)
    all_of_it = torch.cat([x for x, _ in walk(split, batch_size, 1000)])
    assert torch.equal(all_of_it, split[torch.arange(100)][0])


@pytest.mark.parametrize("rows", [1, 3])
def test_targets_that_are_masked_leave_the_inputs_as_they_are(numbered: Path, rows: int) -> None:
    x, y = stream(numbered, 100)[torch.arange(rows)]
    y[:] = IGNORE
    assert x.tolist() == [[*range(i, i + BLOCK)] for i in range(rows)]
    assert x.is_contiguous()
    assert y.is_contiguous()


@pytest.mark.parametrize("index", [-1, 95, 10**6])
def test_a_window_outside_of_the_split_is_refused(tmp_path: Path, index: int) -> None:
    (tmp_path / "tokens").write_bytes(bytes(range(200)))
    split = TokenFile(tmp_path / "tokens", "uint8", stop=99, block_size=4)
    with pytest.raises(IndexError, match=f"tokens {index} to {index + 5} of 99"):
        split[torch.tensor([index])]


@pytest.mark.skipif(not shutil.which("fincore"), reason="fincore counts pages in Linux' cache")
def test_of_a_large_file_only_the_windows_are_read(tmp_path: Path) -> None:
    path, size, windows = tmp_path / "tokens", 1 << 28, 64
    with path.open("wb") as file:
        file.truncate(size)  # sparse
    split = TokenFile(path, "uint8", stop=size, block_size=8)
    split[torch.arange(windows) * (size // windows) + 17]
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)]
    cached = int(subprocess.run(command, capture_output=True, check=True).stdout)
    assert cached <= 3 * windows * mmap.PAGESIZE  # Python reads 8 kB at least


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_a_token_file_reads_every_unsigned_type(tmp_path: Path, dtype: str) -> None:
    largest = np.iinfo(dtype).max
    tokens = np.arange(largest - 49, largest + 1, dtype=np.int64)
    tokens.astype(dtype).tofile(tmp_path / "tokens")
    split = TokenFile(tmp_path / "tokens", dtype, stop=50, block_size=BLOCK)
    x, y = split[torch.tensor([0, len(split) - 1])]
    assert x.tolist() == [tokens[:5].tolist(), tokens[44:49].tolist()]
    assert y.tolist() == [tokens[1:6].tolist(), tokens[45:].tolist()]


def test_a_token_file_refuses_other_types(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match='tokens of the type "int32"') as caught:
        TokenFile(tmp_path / "tokens", "int32", stop=9, block_size=BLOCK)
    assert (
        caught.value.hint == "write them as uint8, uint16, uint32: the smallest that holds every id"
    )


@pytest.mark.parametrize("kind", [Data, Split])
def test_help_tells_every_field(kind: type) -> None:
    described = re.findall(r"(?m)^ {4}(\w+): [A-Z]", inspect.getdoc(kind) or "")
    assert described == list(inspect.get_annotations(kind))


@pytest.mark.parametrize("harm", ["gone", "cut", "empty", "a pipe"])
def test_tokens_that_go_while_they_are_read_are_named(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "tokens.bin"
    path.write_bytes(bytes(range(100)))
    split = TokenFile(path, "uint8", stop=100, block_size=4)
    assert split[torch.tensor([3])][0].tolist() == [[3, 4, 5, 6]]
    if harm in ("gone", "a pipe"):
        path.unlink()
    else:
        os.truncate(path, 50 if harm == "cut" else 0)
    if harm == "a pipe":
        os.mkfifo(path)
    with pytest.raises(DataError, match="cannot be read any more") as caught:
        split[torch.tensor([3])]
    assert str(caught.value).startswith(f"{path}: ")
    assert "encodes it again" in str(caught.value.hint)
