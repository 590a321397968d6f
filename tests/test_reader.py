"""Reading ahead: the same batches in the same order, errors at their step, one caller at a time."""

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gptkit.errors import PluginError
from gptkit.model.gpt import GPT
from gptkit.plugin import Callback, Data, Split, TrainState
from gptkit.recipe.codec_record import CodecRecord
from gptkit.recipe.options import GPTConfig, TrainOptions
from gptkit.runs import checkpoint
from gptkit.runs.setup import read_snapshot, saver
from gptkit.testing import LetterCodec
from gptkit.training.callbacks import Callbacks
from gptkit.training.device import resolve_device
from gptkit.training.distributed import Ranks
from gptkit.training.reader import Interrupted, Reader
from gptkit.training.trainer import Trainer

BLOCK, VOCAB, SEED = 8, 26, 3


def no_action(indices: Tensor) -> None:
    pass


class Epochs(Split):
    """Items in a new order every epoch; remembers which were read."""

    def __init__(self, size: int = 12, *, on_call: Callable[[Tensor], None] = no_action) -> None:
        self.size, self.on_call = size, on_call
        self.calls: list[list[int]] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.append(indices.tolist())
        self.on_call(indices)
        x = (indices[:, None] * 5 + torch.arange(BLOCK)) % VOCAB
        return x, (x + 1) % VOCAB

    def indices(self, seed: int, step: int, batch_size: int) -> Tensor:
        first = step * batch_size
        return torch.stack([self._item(seed, n) for n in range(first, first + batch_size)])

    def _item(self, seed: int, n: int) -> Tensor:
        epoch, position = divmod(n, self.size)
        generator = torch.Generator().manual_seed(seed + epoch)
        return torch.randperm(self.size, generator=generator)[position]


class Shards(Epochs):
    """Two files of six items; a batch comes from one of them, in turns."""

    def indices(self, seed: int, step: int, batch_size: int) -> Tensor:
        return super().indices(seed, step, batch_size) % 6 + 6 * (step % 2)


def data_of(train: Split) -> Data:
    return Data(train, Epochs(4), LetterCodec(), vocab_size=VOCAB, block_size=BLOCK)


def trainer(data: Split | Data, *, save_to: Path | None = None, **options: Any) -> Trainer:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "block_size": BLOCK, "n_layer": 1, "n_head": 2, "n_embd": 16}
    model = GPT(GPTConfig(**sizes))
    chosen = TrainOptions(**{"steps": 6, "batch_size": 4, "device": "cpu"} | options)
    codec = CodecRecord(name="letters", distribution="gptkit-letters", options={})
    save = save_to and saver(save_to, keep=chosen.keep, dataset="letters", codec=codec)
    whole = data if isinstance(data, Data) else data_of(data)
    return Trainer(
        model, whole, options=chosen, run_device=resolve_device(chosen), seed=SEED,
        dataset="letters", save=save,
    )  # fmt: skip


def order(split: Split, steps: range, batch_size: int = 4) -> list[list[int]]:
    return [split.indices(SEED, step, batch_size).tolist() for step in steps]


@pytest.mark.parametrize("kind", [Epochs, Shards])
def test_training_reads_the_order_of_the_split_and_nothing_after_it(kind: type[Epochs]) -> None:
    split = kind()
    trainer(split, eval_every=2).fit()
    assert split.calls == order(split, range(6))
    epoch = [index for batch in split.calls[:3] for index in batch]
    assert (sorted(epoch) == list(range(12))) == (kind is Epochs)
    assert all(len({index // 6 for index in batch}) == 1 for batch in split.calls) == (
        kind is Shards
    )


def test_every_rank_reads_its_own_part() -> None:
    expected = Epochs().indices(SEED, 1, 4).tolist()
    parts = []
    for rank in range(2):
        split = Epochs()
        made = Reader(data_of(split), seed=SEED, ranks=Ranks(rank=rank, size=2), name="letters")
        made.read(0, 4)
        made.read_ahead(1, 4)
        made.read(1, 4)
        made.close()
        parts += split.calls[1]
    assert parts == expected


def test_a_resumed_run_reads_on_and_gets_the_same_weights(tmp_path: Path) -> None:
    whole = trainer(Epochs()).fit().model
    trainer(Epochs(), save_to=tmp_path, save_every=2, keep=9).fit()
    step_2 = next(p for p in checkpoint.step_folders(tmp_path) if p.name.endswith("-00000002"))
    split = Epochs()
    resumed = trainer(split)
    resumed.load(read_snapshot(step_2))
    resumed.fit()
    assert split.calls == order(split, range(2, 6))
    for name, weight in resumed.model.named_parameters():
        assert torch.equal(weight, whole.get_parameter(name)), name


def test_another_batch_size_is_read_anew() -> None:
    split = Epochs()
    made = Reader(data_of(split), seed=SEED, name="letters")
    for step, size in enumerate((4, 4, 6, 6, 2)):
        x, y = made.read(step, size)
        made.read_ahead(step + 1, size)
        expected = Epochs()[split.indices(SEED, step, size)]
        assert torch.equal(x, expected[0])
        assert torch.equal(y, expected[1])
    made.close()
    assert [len(call) for call in split.calls] == [4, 4, 4, 6, 6, 6, 2, 2]  # three for nothing


def test_the_next_batch_is_read_while_a_step_is_computed() -> None:
    class Watching(Callback):
        def on_backward_end(self, state: TrainState) -> None:
            deadline = time.monotonic() + 5
            while len(split.calls) < min(state.step + 2, 3) and time.monotonic() < deadline:
                time.sleep(0.001)
            begun.append(len(split.calls))

    split, begun = Epochs(), []
    made = trainer(split, steps=3)
    made.callbacks = Callbacks({"watching": Watching()})
    made.fit()
    assert begun == [2, 3, 3]


def test_an_error_comes_at_its_step_and_names_the_data_set() -> None:
    bad = Epochs().indices(SEED, 3, 4).tolist()

    def act(indices: Tensor) -> None:
        if indices.tolist() == bad:
            raise ValueError("file 7 is damaged")

    made = trainer(Epochs(on_call=act))
    with pytest.raises(ValueError, match="file 7 is damaged") as caught:
        made.fit()
    assert made.state.step == 3  # though it was read while step 2 was computed
    assert caught.value.__notes__ == ["raised by the data set letters at step 3"]
    assert not readers()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            lambda x, y: (x.T, y),
            "x of the training split must have the shape (B, block_size)",
        ),
        (
            lambda x, y: (x[:3], y),
            "x of the training split must have the shape (B, block_size)",
        ),
        (lambda x, y: (x, y.int()), "y of the training split must be int64, not torch.int32"),
        (lambda x, y: (x + 26, y), "x of the training split must be in 0 .. 25: there is 5"),
        (
            lambda x, y: (x, y - 27),
            "y of the training split must be in 0 .. 25, or",
        ),
    ],
)
def test_something_else_than_a_batch_is_refused(
    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], fault: str
) -> None:
    class Wrong(Epochs):
        def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
            return change(*super().__getitem__(indices))

    with pytest.raises(PluginError) as caught:
        trainer(Wrong()).fit()
    assert str(caught.value).startswith(fault)
    assert caught.value.__notes__ == ["raised by the data set letters at step 0"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            lambda x, y: (x[:3], y),
            "x of the validation split must have the shape (B, block_size)",
        ),
        (lambda x, y: (x.numpy(), y), "x of the validation split must be a tensor, not ndarray"),
        (
            lambda x, y: (x, y - 27),
            "y of the validation split must be in 0 .. 25, or",
        ),
        (lambda x, y: x, "the validation split gives a Tensor, not x, y"),
    ],
)
def test_a_wrong_batch_of_the_validation_names_the_data_set(
    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], fault: str
) -> None:
    class Wrong(Epochs):
        def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
            return change(*super().__getitem__(indices))

    data = Data(Epochs(), Wrong(4), LetterCodec(), vocab_size=VOCAB, block_size=BLOCK)
    with pytest.raises(PluginError) as caught:
        trainer(data).fit()
    assert str(caught.value).startswith(fault)
    assert caught.value.__notes__ == ["raised by the data set letters in the validation split"]


def test_indices_that_are_no_indices_are_refused() -> None:
    class Wrong(Epochs):
        def indices(self, seed: int, step: int, batch_size: int) -> Tensor:
            return super().indices(seed, step, batch_size) + step

    with pytest.raises(
        PluginError, match=r"^indices\(\) of the training split must be in 0 .*: there is 1\d"
    ):
        trainer(Wrong()).fit()


def test_no_two_threads_use_the_data_set_at_once() -> None:
    busy, callers = threading.Lock(), set()

    def act(indices: Tensor) -> None:
        assert busy.acquire(blocking=False), "called from two threads at once"
        callers.add(threading.current_thread().name)
        time.sleep(0.01)
        busy.release()

    made = trainer(Epochs(on_call=act), eval_every=1)
    made.data.val.on_call = act  # type: ignore[attr-defined]
    made.fit()
    assert callers == {"gptkit-reader", threading.current_thread().name}
    assert not readers()


def test_at_most_two_batches_are_in_memory() -> None:
    living: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = []

    class Large(Epochs):
        def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
            x, y = super().__getitem__(indices)
            living.add(x)
            most.append(len(living))
            return x, y

    made = Reader(data_of(Large()), seed=SEED, name="letters")
    for step in range(20):
        x, _ = made.read(step, 4)
        made.read_ahead(step + 1, 4)
        made.wait()
    made.read(20, 4)
    del x
    deadline = time.monotonic() + 5
    while len(living) and time.monotonic() < deadline:  # the thread still lets go of the last one
        time.sleep(0.001)
    assert len(living) == 0
    made.close()
    assert max(most) == 2


def test_a_reader_that_nobody_uses_any_more_ends_its_thread() -> None:
    made = Reader(data_of(Epochs()), seed=SEED, name="letters")
    made.read(0, 4)
    (thread,) = readers()
    del made
    thread.join(5)
    assert not thread.is_alive()


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "gptkit-reader"]


HANGING = """
import threading
from tests.test_reader import Epochs, trainer
from gptkit.training import reader

reader.PATIENCE = 0.2

def act(indices):
    if len(split.calls) > 2:
        print("hanging", flush=True)
        threading.Event().wait()

split = Epochs(on_call=act)
trainer(split).fit()
"""


def test_ctrl_c_ends_a_process_whose_reading_thread_hangs() -> None:
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", HANGING], cwd=root, env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stdout.readline() == "hanging\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors


@pytest.mark.slow
def test_a_signal_ends_the_wait_for_a_batch_and_saves_the_latest_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptkit.training.reader.PATIENCE", 0.1)
    never = threading.Event()

    def act(indices: Tensor) -> None:
        if len(split.calls) > 3:
            signal.raise_signal(signal.SIGINT)
            never.wait(20)

    split = Epochs(on_call=act)
    made = trainer(split, save_to=tmp_path, eval_every=3)
    before = signal.signal(signal.SIGINT, lambda signum, frame: made.interrupt())
    try:
        state = made.fit()
        assert not never.is_set()
    finally:
        signal.signal(signal.SIGINT, before)
        never.set()
    assert isinstance(state.error, KeyboardInterrupt)
    assert state.step == 3
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000003"]
    assert len(split.calls) == 4


def test_a_batch_is_awaited_no_longer_when_training_is_to_end() -> None:
    begun, never = threading.Event(), threading.Event()

    def act(indices: Tensor) -> None:
        begun.set()
        never.wait(20)

    split = Epochs(on_call=act)
    made = Reader(data_of(split), seed=SEED, name="letters", interrupted=begun.is_set)
    with pytest.raises(Interrupted):
        made.read(0, 4)
    never.set()
    made.close()
