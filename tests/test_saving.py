"""Saving: tensor by tensor, by all ranks that hold rows, and large checkpoints beside training."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from itertools import count
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import PrivateAttr
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptkit import memory
from gptkit.errors import CheckpointError, DivergedError
from gptkit.model.gpt import GPT
from gptkit.plugin import Callback, Data, TokenFile, TrainState
from gptkit.recipe.codec_record import CodecRecord
from gptkit.recipe.options import GPTConfig, TrainOptions
from gptkit.runs import checkpoint, checkpoint_writer, tensor_writer
from gptkit.runs.setup import read_snapshot, saver
from gptkit.runs.state import State
from gptkit.testing import LetterCodec
from gptkit.training import saving
from gptkit.training.callbacks import Callbacks
from gptkit.training.device import resolve_device
from gptkit.training.distributed import ALONE, Ranks
from gptkit.training.snapshot import Snapshot
from gptkit.training.trainer import Trainer
from tests.test_checkpoint import files_limited_to
from tests.test_exact_resume import Average

STEPS, EVERY = 9, 3
LONG = 60.0
"""Seconds that nothing waits unless it is broken."""
CODEC = CodecRecord(name="letters", distribution="gptkit", options={})

Save = Callable[[Snapshot], Path]


class Watch(Callback):
    """Notes the events, fails on demand, and lets a gate see the steps."""

    fail_at: int = 0
    """The step in which the loss becomes infinite; 0: in none."""
    _log: list[tuple[str, int]] = PrivateAttr(default_factory=list)
    _gate: "Gate | None" = PrivateAttr(default=None)
    _kept: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    def on_backward_end(self, state: TrainState) -> None:
        if state.step + 1 == self.fail_at:
            raise DivergedError("it diverged")

    def on_step_end(self, state: TrainState) -> None:
        if self._gate:
            self._gate.reach(state.step)

    def on_save_end(self, state: TrainState) -> None:
        if state.rank == 0:
            assert state.checkpoint
            checkpoint.load(state.checkpoint)
            self._log.append((state.checkpoint.name, state.step))

    def on_fit_end(self, state: TrainState) -> None:
        self._log.append(("end", state.step))

    def state_dict(self) -> dict[str, Any]:
        return dict(self._kept)


class Gate:
    """A writer that waits, if it is a thread beside the training, for two further steps of it."""

    def __init__(self, write: Save) -> None:
        self.write, self.step = write, 0
        self.changed = threading.Condition()
        self.threads: list[threading.Thread] = []

    def __call__(self, taken: Snapshot) -> Path:
        self.threads.append(threading.current_thread())
        if threading.current_thread() is not threading.main_thread():
            with self.changed:
                assert self.changed.wait_for(lambda: self.step >= taken.step + 2, LONG)
        return self.write(taken)

    def reach(self, step: int) -> None:
        with self.changed:
            self.step = step
            self.changed.notify_all()


def letters(folder: Path) -> Data:
    path = folder / "tokens"
    np.random.default_rng(0).integers(0, 26, 500).astype(np.uint8).tofile(path)
    parts = [
        TokenFile(path, "uint8", start=a, stop=b, block_size=8) for a, b in ((0, 400), (400, 500))
    ]
    return Data(*parts, LetterCodec(), vocab_size=26, block_size=8)


def make(data: Data, save: Save | None, watch: Watch, ranks: Ranks = ALONE, **more: Any) -> Trainer:
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "dropout": 0.1, "norm": "layernorm"}
    model = GPT(GPTConfig(vocab_size=26, block_size=8, bias=True, **shape))
    options = TrainOptions(
        **{"steps": STEPS, "batch_size": 4, "eval_every": EVERY, "keep": 99, "device": "cpu"} | more
    )
    return Trainer(
        model, data, options=options, run_device=resolve_device(options), seed=3, ranks=ranks,
        callbacks=Callbacks({"watch": watch, "ema": Average()}), save=save,
    )  # fmt: skip


def saver_to(folder: Path, ranks: Ranks = ALONE) -> Save:
    return saver(folder, keep=99, dataset="letters", codec=CODEC, ranks=ranks)


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files of all step folders."""
    found = (path for step in checkpoint.step_folders(folder) for path in step.iterdir())
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in found}


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return letters(tmp_path)


@pytest.fixture
def expected(data: Data, tmp_path: Path) -> dict[str, bytes]:
    """What a training writes that waits for its checkpoints."""
    folder = tmp_path / "straight"
    make(data, saver_to(folder), Watch()).fit()
    return contents(folder)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every checkpoint counts as large."""
    monkeypatch.setattr(saving, "LARGE", 0)


@pytest.mark.usefixtures("large")
def test_training_goes_on_while_a_checkpoint_is_written(
    expected: Mapping[str, bytes], data: Data, tmp_path: Path
) -> None:
    watch, gate = Watch(), Gate(saver_to(tmp_path / "run"))
    watch._gate = gate
    trainer = make(data, gate, watch)
    trainer.fit()
    assert contents(tmp_path / "run") == expected
    (first, at), (second, later), *last = watch._log
    assert (first, second) == ("step-00000003", "step-00000006")
    assert 5 <= at <= 6
    assert 8 <= later <= 9
    assert last == [("step-00000009", 9), ("end", 9)]
    assert [thread is threading.main_thread() for thread in gate.threads] == [False, False, True]
    assert trainer.checkpoints.saved_step == 9


@pytest.mark.usefixtures("large")
def test_what_ends_training_waits_for_the_checkpoint(data: Data, tmp_path: Path) -> None:
    for how in ("interrupt", "diverge", "leave"):
        watch, slow = Watch(fail_at=4 if how == "diverge" else 0), threading.Event()

        def save(taken: Snapshot, folder: Path = tmp_path / how, slow: Any = slow) -> Path:
            slow.wait(0.2)
            return saver_to(folder)(taken)

        trainer = make(data, save, watch)
        try:
            for state in trainer.steps():
                if state.step == EVERY and how == "interrupt":
                    trainer.interrupt()
                if state.step == EVERY and how == "leave":
                    break
        except DivergedError:
            assert how == "diverge"
        assert watch._log == [("step-00000003", 3), ("end", 3)], how
        assert [path.name for path in (tmp_path / how).iterdir() if path.is_dir()], how


@pytest.mark.skipif(sys.platform == "win32", reason="no pthread_kill")
@pytest.mark.usefixtures("large")
def test_an_interrupt_does_not_forget_what_is_being_written(data: Data, tmp_path: Path) -> None:
    """A second Ctrl-C, while training waits: the folder stays locked until the thread has ended."""
    begun, go_on = threading.Event(), threading.Event()
    main = threading.main_thread().ident or 0

    def save(taken: Snapshot) -> Path:
        assert begun.wait(LONG)
        go_on.wait(0.1)  # until the training waits
        signal.pthread_kill(main, signal.SIGINT)
        assert go_on.wait(LONG)
        return saver_to(tmp_path / "run")(taken)

    watch = Watch()
    trainer = make(data, save, watch)
    steps = trainer.steps()
    next(steps)
    trainer.checkpoints.save(wait=False)
    with pytest.raises(KeyboardInterrupt):
        begun.set()
        trainer.checkpoints.finish(wait=True)
    assert watch._log == []
    go_on.set()
    steps.close()
    assert watch._log == [("step-00000001", 1), ("end", 1)]


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("fail_at", [0, 5])
def test_a_disk_that_is_full_ends_training_with_the_reason(
    fail_at: int, data: Data, tmp_path: Path
) -> None:
    watch, good = Watch(fail_at=fail_at), saver_to(tmp_path / "run")

    def save(taken: Snapshot) -> Path:
        if taken.step == EVERY:
            return good(taken)
        with files_limited_to(2000):
            return good(taken)

    trainer = make(data, save, watch, save_every=1 if fail_at else EVERY)
    with pytest.raises((CheckpointError, DivergedError)) as caught:
        trainer.fit()
    assert trainer.state.error is caught.value
    told = [str(caught.value), *getattr(caught.value, "__notes__", [])]
    assert any("step-0000000" in line and "cannot be saved: [Errno 27]" in line for line in told)
    assert trainer.checkpoints.saved_step == (None if fail_at else EVERY)
    assert not [*tmp_path.rglob("*.tmp")]


@pytest.mark.usefixtures("large")
def test_without_room_for_a_copy_training_waits(
    expected: Mapping[str, bytes], data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free", lambda: 1000)
    gate = Gate(saver_to(tmp_path / "run"))
    make(data, gate, Watch()).fit()
    assert set(gate.threads) == {threading.main_thread()}
    assert contents(tmp_path / "run") == expected


def test_a_small_checkpoint_is_complete_before_the_next_step(data: Data, tmp_path: Path) -> None:
    watch = Watch()
    make(data, saver_to(tmp_path / "run"), watch).fit()
    assert watch._log == [*((f"step-{n:08d}", n) for n in (3, 6, 9)), ("end", 9)]


def test_the_file_is_that_of_safetensors(tmp_path: Path) -> None:
    """Every dtype, odd names, no values at all, views and the same memory twice."""
    base = torch.arange(24.0).view(4, 6)
    tensors = {'b/ü\n"': base[:, 1], "a": base, "A": base.T, "none": torch.empty(0, 3)}
    tensors[""] = base[0]
    for dtype in tensor_writer.DTYPES:
        values = torch.arange(3 * dtype.itemsize, dtype=torch.uint8) % 2
        tensors[str(dtype)] = values.view(dtype)
    tensor_writer.create(tmp_path / "own", tensors)
    tensor_writer.fill(tmp_path / "own", tensors, first=True)
    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, tmp_path / "theirs")
    assert (tmp_path / "own").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_other_rows_are_neither_read_nor_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over NFS, a page that was read would come back with the rows of others as they were."""
    fcntl, modes = pytest.importorskip("fcntl"), list[int]()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        modes.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    tensors = {"a": torch.ones(2), "b": torch.ones(3)}
    size = tensor_writer.create(tmp_path / "file", tensors)
    assert tensor_writer.fill(tmp_path / "file", {"b": tensors["b"]}, first=True) == 12
    assert tensor_writer.fill(tmp_path / "file", {"a": tensors["a"]}, first=True) == 8 == size - 12
    assert modes == [os.O_WRONLY, os.O_WRONLY]
    torch.testing.assert_close(load_file(tmp_path / "file"), tensors)


def test_saving_takes_memory_for_one_tensor_at_a_time(tmp_path: Path) -> None:
    """Each must be copied, since it is not contiguous; there is room for one copy, not for two."""
    resource = pytest.importorskip("resource")
    side = 3000
    tensors = {name: torch.ones(side, side).T for name in "abc"}
    free = memory.free()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 6 * side * side, hard))
    try:
        limited = memory.free()
        folder = checkpoint_writer.save(tmp_path, plain_state(), {"model": tensors})
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert limited is not None
    assert free is not None
    assert limited < min(free, 7 * side * side)
    assert load_file(folder / "model.safetensors").keys() == set("abc")


def plain_state(step: int = 5) -> State:
    config = GPTConfig(n_layer=1, n_head=1, n_embd=4, vocab_size=3, block_size=2)
    return State(
        gptkit="0", config=config, dataset="letters", codec=CODEC, step=step, val_loss=None,
        val_step=None, optimizer_groups=[], callbacks={},
    )  # fmt: skip


if sys.platform != "win32":
    FORKING = multiprocessing.get_context("forkserver")


def in_processes(target: Callable[..., None], arguments: list[tuple[Any, ...]]) -> list[int | None]:
    """The exit codes of processes that run together."""
    FORKING.set_forkserver_preload(["gptkit.runs.train", "tests.test_saving"])
    forkserver.ensure_running()
    processes = [FORKING.Process(target=target, args=args) for args in arguments]
    for process in processes:
        process.start()
    for process in processes:  # one that waits for another that has ended waits for long
        process.join(3 * LONG if all(not p.exitcode for p in processes) else 0)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def train_and_die(folder: Path, die_at: int) -> None:
    """Train with large checkpoints, but die before a file operation of any thread."""
    left = [die_at]

    def look(event: str, found: tuple[Any, ...]) -> None:
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
        if changes or (event == "open" and str(found[0]).startswith(str(folder))):
            left[0] -= 1
            if not left[0]:
                signal.raise_signal(signal.SIGKILL)

    torch.set_num_threads(1)
    saving.LARGE = 0
    trainer = make(letters(folder.parent), saver_to(folder), Watch())
    sys.addaudithook(look)
    trainer.fit()


@pytest.mark.skipif(sys.platform == "win32", reason="no fork server, no kill -9")
@pytest.mark.parametrize("stride", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_kill_9_before_a_file_operation(
    stride: int, expected: Mapping[str, bytes], data: Data, tmp_path: Path
) -> None:
    for operation in count(1 + stride // 2, stride):
        folder, again = tmp_path / f"killed-{operation}", tmp_path / f"again-{operation}"
        (code,) = in_processes(train_and_die, [(folder, operation)])
        found = contents(folder)
        assert found.items() <= expected.items()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        trainer = make(data, saver_to(again), Watch())
        if found:
            trainer.load(read_snapshot(checkpoint.step_folders(folder)[-1]))
        trainer.fit()
        assert found | contents(again) == expected
    assert operation > 90
    assert found == expected


def save_on(rank: int, size: int, folder: Path) -> None:
    """One rank: writes rows of odd tensors, fails together with the others, and trains."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size
    )
    ranks, mesh = Ranks(rank=rank, size=size), init_device_mesh("cpu", (size,))
    sharded = {name: distribute_tensor(t, mesh, [Shard(0)]) for name, t in odd_tensors().items()}
    files = {"model": sharded | {"plain": torch.arange(3) + rank}}
    for step in range(20):  # the ranks come at different times
        checkpoint_writer.save(folder / "odd", plain_state(step), files, ranks)
    if rank == 1:
        with files_limited_to(50), pytest.raises(CheckpointError, match="cannot be saved"):
            checkpoint_writer.save(folder / "full", plain_state(), files, ranks)
    else:
        with pytest.raises(CheckpointError, match=r"cannot be saved: \[Errno 27\] File too large"):
            checkpoint_writer.save(folder / "full", plain_state(), files, ranks)
    for name, size_of_large in (("at-once", 1 << 60), ("beside", 0)):
        saving.LARGE = size_of_large
        watch = Watch()
        gate = Gate(saver_to(folder / name, ranks.apart()))
        watch._gate = gate
        watch._kept = {"kept": distribute_tensor(torch.arange(4.0), mesh, [Replicate()])}
        trainer = make(letters(folder / str(rank)), gate, watch, ranks, batch_size=6, shard=True)
        trainer.fit()
        beside = [thread is not threading.main_thread() for thread in gate.threads]
        assert beside == [name == "beside"] * 2 + [False]
    distributed.barrier()
    distributed.destroy_process_group()


def odd_tensors() -> dict[str, Tensor]:
    """More rows than ranks and fewer, which are not divided evenly; and many small ones."""
    shapes = {"tall": (7, 2, 3), "flat": (1, 5), "vector": (2,), "even": (3, 100)}
    shapes |= {f"narrow-{i}": (8, 1) for i in range(40)}
    numbers = iter(range(1, 10**6))
    return {
        name: torch.tensor([next(numbers) for _ in range(int(np.prod(shape)))]).view(shape)
        for name, shape in shapes.items()
    }


@pytest.mark.skipif(sys.platform == "win32", reason="no fork server")
def test_ranks_write_one_file_together(tmp_path: Path) -> None:
    size = 3
    for name in ("odd", "full", *map(str, range(size))):
        (tmp_path / name).mkdir()
    assert in_processes(save_on, [(rank, size, tmp_path) for rank in range(size)]) == [0] * size
    plain = {"model": odd_tensors() | {"plain": torch.arange(3)}}
    for step_folder in checkpoint.step_folders(tmp_path / "odd"):
        alone = checkpoint_writer.save(
            tmp_path / "alone", plain_state(checkpoint.step_of(step_folder)), plain
        )
        for name in ("model.safetensors", "state.json"):
            assert (alone / name).read_bytes() == (step_folder / name).read_bytes()
    assert not [*(tmp_path / "full").iterdir()]
    assert contents(tmp_path / "beside") == contents(tmp_path / "at-once")
    assert len(checkpoint.step_folders(tmp_path / "beside")) == STEPS // EVERY
