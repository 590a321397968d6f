"""Stopped, killed or damaged: a resumed run ends where an uninterrupted one does, bit for bit."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import count
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import pytest

from gptkit.cli.app import app
from gptkit.runs import checkpoint

if sys.platform == "win32":
    pytest.skip("no fork server, no kill -9", allow_module_level=True)

FORKING = multiprocessing.get_context("forkserver")
PRELOADED = [
    "gptkit.runs.train",
    "torch._dynamo",
    "gptkit_char_text",
    "gptkit_lr_decay",
    "gptkit_log",
]
"""What every child would import for seconds; torch's optimizers import torch._dynamo when made."""

SABOTEUR = '''
import os
import signal
import sys
from pathlib import Path

import torch
from pydantic import PrivateAttr

from gptkit.plugin import Callback
from gptkit_char_text.dataset import CharText


class PausingText(CharText):
    """A text that takes until SIGCONT to load."""

    def load(self):
        signal.raise_signal(signal.SIGSTOP)
        return super().load()


class DyingText(CharText):
    """A text after which the process dies before a file operation, if there is an order."""

    order: str
    """The path of a file with the number of the operation among those in its folder."""

    def load(self):
        data, order = super().load(), Path(self.order)
        if order.exists():
            left = [int(order.read_text())]
            sys.addaudithook(lambda event, args: die(left, event, args, str(order.parent)))
        return data


def die(left, event, args, folder):
    """Count an operation that changes files, or opens one in the folder; die before the last."""
    if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir") or (
        event == "open" and str(args[0]).startswith(folder)
    ):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)


class Saboteur(Callback):
    """Interrupts its own process; keeps a state of numbers and of tensors besides."""

    contract = 1

    stop_at: list[int] = []
    """Steps during which Ctrl-C is pressed; 0: before the first one, once."""
    pause_at: int = 0
    """The step at which the process stands still until SIGCONT wakes it; 0: none."""

    _steps_seen: int = PrivateAttr(default=0)
    _losses: torch.Tensor = PrivateAttr(default_factory=lambda: torch.zeros(0))
    _left: list[int] = PrivateAttr(default=[0])
    _counting: bool = PrivateAttr(default=False)

    def on_fit_start(self, state):
        if 0 in self.stop_at and not (state.run_dir / "checkpoints").exists():
            signal.raise_signal(signal.SIGINT)
        order = state.run_dir / "die-at-file-operation"
        self._left = [int(order.read_text()) if order.exists() else 0]
        if self._left[0]:
            sys.addaudithook(lambda event, args: self._count(event, args, str(state.run_dir)))

    def on_step_start(self, state):
        if self._counting:
            self._left, self._counting = [0], False

    def on_step_end(self, state):
        self._steps_seen += 1
        self._losses = torch.cat([self._losses, state.loss[None]])
        self._counting = True
        if state.step in self.stop_at:
            signal.raise_signal(signal.SIGINT)
        if state.step == self.pause_at:
            signal.raise_signal(signal.SIGSTOP)

    def state_dict(self):
        return {"steps_seen": self._steps_seen, "losses": self._losses}

    def load_state_dict(self, state):
        self._steps_seen, self._losses = state["steps_seen"], state["losses"]

    def _count(self, event, args, folder):
        if self._counting and self._left[0]:
            die(self._left, event, args, folder)
'''

TRAIN = {"steps": 12, "eval_every": 5, "save_every": 4}
VARIANTS: dict[str, dict[str, Any]] = {
    "adamw": {"train": TRAIN},
    "parts": {
        "train": TRAIN | {"micro_batch_size": 2},
        "model": {"position": "rotary", "norm": "rmsnorm", "mlp": "relu2", "qk_norm": True},
    },
    "muon, dropout": {
        "train": TRAIN | {"optimizer": {"use": "muon"}, "micro_batch_size": 1},
        "model": {"dropout": 0.2},
    },
}
SAVING = {"steps": 60, "eval_every": 5, "eval_batches": 2, "save_every": 1}

Start = Callable[..., BaseProcess]
Gptkit = Callable[..., subprocess.CompletedProcess[str]]
WriteRecipe = Callable[..., Path]


def truncate(step_folder: Path) -> None:
    path = step_folder / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(step_folder: Path) -> None:
    path = step_folder / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def lose_a_file(step_folder: Path) -> None:
    (step_folder / "callbacks.safetensors").unlink()


def empty_the_state(step_folder: Path) -> None:
    (step_folder / "state.json").write_bytes(b"")


@pytest.fixture(scope="module", autouse=True)
def fork_server() -> None:
    """The process that forks the others imports torch once for all of them."""
    FORKING.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


def _run(arguments: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    app(arguments)


@pytest.fixture
def start(fork_server: None) -> Iterator[Start]:
    """Starts `gptkit ARGS` in a process of its own, without its seconds of imports."""
    started: list[BaseProcess] = []

    def call(*args: object) -> BaseProcess:
        process = FORKING.Process(target=_run, args=([str(arg) for arg in args],))
        process.start()
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.join()


@pytest.fixture
def recipe(tiny_recipe: Callable[..., Path], distribution: Callable[..., Path]) -> WriteRecipe:
    """Writes a recipe that evaluates, logs and has a saboteur, who does nothing unless told."""
    entries = {
        "callbacks": "saboteur = Saboteur",
        "datasets": "pausing-text = PausingText\ndying-text = DyingText",
    }
    distribution("gptkit-saboteur", SABOTEUR, **entries)

    def write(*, log_every: int = 1, **tables: Any) -> Path:
        callbacks = [
            {"use": "saboteur"},
            {"use": "lr-decay", "warmup_steps": 3},
            {"use": "grad-clip"},
            {"use": "log", "every": log_every, "sample_tokens": 8},
        ]
        return tiny_recipe(**tables, callbacks=callbacks)

    return write


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stopped_run_ends_as_an_uninterrupted_one(
    variant: str, recipe: WriteRecipe, start: Start, tmp_path: Path
) -> None:
    path = recipe(**VARIANTS[variant], log_every=4)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert exit_code(start("train", path, "--out", straight)) == 0

    # Before the first step, between two checkpoints, and when an evaluation is due.
    stop_at = "callbacks.saboteur.stop_at=[0, 3, 10]"
    assert exit_code(start("train", path, "--out", stopped, "--set", stop_at)) == 130
    assert saved_steps(stopped) == [0]
    assert exit_code(start("resume", stopped)) == 130
    assert newest(stopped) == 3
    assert exit_code(start("resume", stopped)) == 130
    assert newest(stopped) == 10
    assert exit_code(start("resume", stopped)) == 0

    assert_same_outcome(stopped, straight)
    losses = records(straight, "loss")
    assert [record["step"] for record in losses] == [4, 8, 12]
    assert [record["step"] for record in records(straight, "val_loss")] == [5, 10, 12]
    assert records(stopped, "val_loss") == records(straight, "val_loss")
    logged = records(stopped, "loss")
    assert [record["step"] for record in logged] == [3, 4, 8, 10, 12]  # a stop has a line, too
    assert [record for record in logged if record["step"] % 4 == 0] == losses


@pytest.mark.parametrize(
    ("tables", "kills"),
    [
        pytest.param({"train": SAVING}, 10, id="10"),
        pytest.param(
            {
                "train": SAVING | {"optimizer": {"use": "muon"}, "micro_batch_size": 2},
                "model": {"dropout": 0.2},
            },
            200,
            id="200",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_kill_9_at_random_instants(
    tables: dict[str, Any], kills: int, recipe: WriteRecipe, start: Start, tmp_path: Path
) -> None:
    path, random, numbers = recipe(**tables), Random(kills), count()
    straight, folder = tmp_path / "straight", tmp_path / "killed"
    assert exit_code(start("train", path, "--out", straight)) == 0

    killed = while_saving = 0
    while killed < kills:
        if newest(folder) in (0, SAVING["steps"]):  # nothing is saved, or it outran its killer
            folder = tmp_path / f"killed-{next(numbers)}"
            process = start("train", path, "--out", folder)
        else:
            process = start("resume", folder)
        wait_for_an_instant(process, folder, random)
        process.kill()
        if exit_code(process) == 0:
            assert_same_outcome(folder, straight)
            continue
        killed += 1
        while_saving += bool(half_written(folder))
        assert_every_step_folder_loads(folder)
    if not newest(folder):
        folder = tmp_path / "last"
        assert exit_code(start("train", path, "--out", folder)) == 0
    assert exit_code(start("resume", folder)) == 0

    assert while_saving > 0
    assert_same_outcome(folder, straight)
    assert records(folder) == records(straight)


@pytest.mark.parametrize(
    "stride",
    [pytest.param(12, id="every twelfth"), pytest.param(1, id="every", marks=pytest.mark.slow)],
)
def test_kill_9_before_a_file_operation(
    stride: int, recipe: WriteRecipe, start: Start, tmp_path: Path
) -> None:
    path = recipe(train=SAVING | {"eval_every": 2, "eval_batches": 1})
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert exit_code(start("train", path, "--out", straight)) == 0

    stop_at = "callbacks.saboteur.stop_at=[3]"
    assert exit_code(start("train", path, "--out", killed, "--set", stop_at)) == 130
    for operation in count(1, stride):
        before = newest(killed)
        (killed / "die-at-file-operation").write_text(str(operation))
        status = exit_code(start("resume", killed))
        assert_every_step_folder_loads(killed)
        assert newest(killed) >= before
        if status == 0:  # evaluating and saving are fewer operations than that
            break
        assert status == -signal.SIGKILL

    assert operation > 20
    assert_same_outcome(killed, straight)
    assert records(killed) == records(straight)


@pytest.mark.parametrize(
    "stride",
    [pytest.param(10, id="every tenth"), pytest.param(1, id="every", marks=pytest.mark.slow)],
)
def test_kill_9_while_a_run_is_made(
    stride: int, recipe: WriteRecipe, start: Start, tmp_path: Path
) -> None:
    order = tmp_path / "runs" / "order"
    dataset = {"use": "dying-text", "order": str(order), "block_size": 16}
    path = recipe(train=TRAIN, dataset=dataset)
    straight, folder = tmp_path / "straight", tmp_path / "runs" / "r"
    assert exit_code(start("train", path, "--out", straight)) == 0

    ways = []
    for operation in count(1, stride):
        order.parent.mkdir()
        order.write_text(str(operation))
        assert exit_code(start("train", path, "--out", folder)) == -signal.SIGKILL
        order.unlink()
        made, trained = (folder / "recipe.toml").exists(), newest(folder)
        if made:  # gptkit train says so, and names the other way
            assert exit_code(start("train", path, "--out", folder)) == 2
            assert exit_code(start("resume", folder)) == 0
        else:
            assert exit_code(start("resume", folder)) == 2
            assert exit_code(start("train", path, "--out", folder)) == 0
        assert_same_outcome(folder, straight)
        assert records(folder) == records(straight)
        shutil.rmtree(order.parent)
        ways.append(made)
        if trained:  # the run is made; what follows is saving
            break

    assert True in ways[:-1]
    assert False in ways


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lose_a_file, empty_the_state])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: Callable[[Path], None],
    recipe: WriteRecipe,
    cli: Callable[..., Any],
    tmp_path: Path,
) -> None:
    folder, aside = tmp_path / "run", tmp_path / "aside"
    assert cli("train", recipe(train=TRAIN), "--out", folder).exit_code == 0
    shutil.copytree(folder, aside)
    damaged = step_folders(folder)[-1]
    damage(damaged)

    result = cli("resume", folder)
    assert result.exit_code == 0
    assert f"skipping {damaged}" in result.stderr
    assert "from step 8\n" in result.stderr
    assert_same_outcome(folder, aside)
    assert records(folder) == records(aside)


def test_no_intact_checkpoint(recipe: WriteRecipe, cli: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert cli("train", recipe(train=TRAIN), "--out", folder).exit_code == 0
    for step_folder in step_folders(folder):
        truncate(step_folder)
    before = contents(folder)

    result = cli("resume", folder)
    assert result.exit_code == 1
    assert f"error: {folder}: no checkpoint is intact" in result.stderr
    assert "hint:  train it from the start" in result.stderr
    assert contents(folder) == before


def test_resume_takes_the_newest_run_and_says_when_it_is_complete(
    recipe: WriteRecipe, cli: Callable[..., Any], tmp_path: Path
) -> None:
    path = recipe(train=TRAIN)
    older, newer = Path("runs/b"), Path("runs/a")
    stop_at = "callbacks.saboteur.stop_at=[6]"
    assert cli("train", path, "--out", older, "--set", stop_at).exit_code == 130
    assert cli("train", path, "--out", newer, "--set", stop_at).exit_code == 130

    result = cli("resume")
    assert (result.exit_code, result.stdout) == (0, f"{newer}\n")
    assert (newest(tmp_path / newer), newest(tmp_path / older)) == (12, 6)
    before = contents(tmp_path / newer)
    result = cli("resume")
    assert (result.exit_code, result.stdout) == (0, f"{newer}\n")
    assert result.stderr.startswith(f"{newer}: complete at step 12\nhint:  train longer: ")
    assert contents(tmp_path / newer) == before


def test_changed_training_data_is_refused(
    recipe: WriteRecipe, cli: Callable[..., Any], tmp_path: Path
) -> None:
    text, folder = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("to be or not to be, " * 20)
    path = recipe(train=TRAIN, dataset={"path": str(text)})
    stop_at = "callbacks.saboteur.stop_at=[6]"
    assert cli("train", path, "--out", folder, "--set", stop_at).exit_code == 130
    before = contents(folder)

    text.write_text("to be or not to eb, " * 20)  # no other length, no other characters
    result = cli("resume", folder)
    assert result.exit_code == 1
    fault = "the training data is not the data that this run started with"
    assert f"error: {folder}: {fault}" in result.stderr
    assert contents(folder) == before

    text.write_text("to be or not to be, " * 20)
    assert cli("resume", folder).exit_code == 0
    assert newest(folder) == 12


def test_a_second_process_is_refused_while_the_first_one_trains(
    recipe: WriteRecipe, gptkit: Gptkit, cli: Callable[..., Any], tmp_path: Path
) -> None:
    path, folder = recipe(train=TRAIN), tmp_path / "run"
    pause = ["--set", "callbacks.saboteur.pause_at=7"]
    with paused("train", path, "--out", folder, *pause) as first:
        second = gptkit("resume", folder, env=same_path())
        assert second.returncode == 1
        assert second.stderr.startswith(f"error: {folder}: another process is training")
        assert second.stderr.count("\n") == 2  # the error and its hint
        assert cli("train", path, "--out", folder).exit_code == 2
        assert newest(folder) == 4

        first.send_signal(signal.SIGINT)
        first.send_signal(signal.SIGCONT)
        first.wait(timeout=60)
    assert first.returncode == 130
    assert newest(folder) == 7
    assert cli("resume", folder).exit_code == 0
    assert newest(folder) == 12
    assert [record["step"] for record in records(folder, "loss")] == list(range(1, 13))


def test_a_run_that_another_process_made_meanwhile_is_not_overwritten(
    recipe: WriteRecipe, cli: Callable[..., Any], tmp_path: Path
) -> None:
    path, folder = recipe(train=TRAIN), tmp_path / "run"
    pause = ["--set", "dataset.use=pausing-text"]
    with paused("train", path, "--out", folder, *pause) as late:
        assert cli("train", path, "--out", folder).exit_code == 0
        before = contents(folder)

        late.send_signal(signal.SIGCONT)
        late.wait(timeout=60)
    assert late.returncode in (1, 2)
    assert contents(folder) == before


def test_runs_that_start_in_the_same_second_have_folders_of_their_own(
    recipe: WriteRecipe, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, pause = recipe(train=TRAIN), ["--set", "dataset.use=pausing-text"]
    processes = [start("train", path, *pause, "--set", f"seed={seed}") for seed in range(4)]
    processes[0].join(timeout=1)  # all have their names by then, none of them has its folder
    for process in processes:
        wake(process)
    assert [exit_code(process) for process in processes] == [0, 0, 0, 0]
    recipes = {path.read_text() for path in tmp_path.glob("runs/*/recipe.toml")}
    assert len(recipes) == 4


def test_a_resumed_run_says_which_callbacks_changed(
    recipe: WriteRecipe, cli: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    stop_at = "callbacks.saboteur.stop_at=[6]"
    path = recipe(train=TRAIN)
    assert cli("train", path, "--out", folder, "--set", stop_at).exit_code == 130
    text = (folder / "recipe.toml").read_text()
    assert text.count('use = "grad-clip"') == 1
    (folder / "recipe.toml").write_text(text.replace('use = "grad-clip"', 'use = "ema"').replace(
        "max_norm = 1.0\n", ""))  # fmt: skip

    result = cli("resume", folder)
    assert result.exit_code == 0
    said = "callbacks changed since the checkpoint: added ema; removed grad-clip"
    assert said in result.stderr.splitlines()
    steps_seen = checkpoint.load_state(step_folders(folder)[-1]).callbacks
    assert steps_seen["saboteur"]["steps_seen"] == 12  # the others have their states back

    result = cli("sample", folder, "--weights", "emma")
    assert result.exit_code == 2
    fault = f'error: {step_folders(folder)[-1]}: no weights named "emma"\nhint:  there are: ema\n'
    assert result.stderr == fault


def test_the_recipe_in_a_run_folder_repeats_the_run(
    recipe: WriteRecipe, cli: Callable[..., Any], tmp_path: Path
) -> None:
    folder, again = tmp_path / "run", tmp_path / "again"
    path = recipe(train=TRAIN | {"optimizer": {"use": "muon"}}, model={"dropout": 0.2})
    overrides = ["--set", "seed=7", "--set", "train.steps=6"]
    assert cli("train", path, "--out", folder, *overrides).exit_code == 0
    assert cli("train", folder / "recipe.toml", "--out", again).exit_code == 0

    assert_same_outcome(again, folder)
    assert records(again) == records(folder)
    assert (again / "recipe.toml").read_bytes() == (folder / "recipe.toml").read_bytes()


@contextmanager
def paused(*args: object) -> Iterator["subprocess.Popen[bytes]"]:
    """A real process of `gptkit ARGS` that stands still; it is dead in the end."""
    command = [sys.executable, "-m", "gptkit", *map(str, args)]
    with subprocess.Popen(command, env=os.environ | same_path()) as process:
        try:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status), "it should pause"
            yield process
        finally:
            process.kill()


def same_path() -> dict[str, str]:
    """Lets a process import what this one can: the saboteur."""
    return {"PYTHONPATH": os.pathsep.join(sys.path)}


def exit_code(process: BaseProcess) -> int:
    process.join(timeout=60)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def wake(process: BaseProcess) -> None:
    """Make a process that stands still, now or in a moment, run to its end."""
    pid = process.pid
    assert pid

    def send() -> None:
        with suppress(ProcessLookupError):  # it ended in between
            os.kill(pid, signal.SIGCONT)

    wait(process, send)


def wait_for_an_instant(process: BaseProcess, folder: Path, random: Random) -> None:
    """Until up to two more steps are saved, and then a while, or until another save has begun."""
    goal = newest(folder) + random.randrange(3)
    if random.random() < 0.5:
        wait(process, lambda: newest(folder) >= goal)
        process.join(timeout=random.choice((0.01, 0.3)) * random.random())
    else:
        wait(process, lambda: newest(folder) >= goal and half_written(folder))


def wait(process: BaseProcess, condition: Callable[[], Any]) -> None:
    deadline = monotonic() + 60
    while process.is_alive() and not condition():
        assert monotonic() < deadline, "it hangs"
        process.join(timeout=0.001)


def step_folders(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step-*"))


def saved_steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in step_folders(folder)]


def newest(folder: Path) -> int:
    return max(saved_steps(folder), default=0)


def half_written(folder: Path) -> list[Path]:
    return list((folder / "checkpoints").glob(".step-*"))


def records(folder: Path, kind: str = "") -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that have a value of that name, without times and memory."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in lines:
        for name in ("elapsed", "tokens_per_second", "mfu", "memory_mb"):
            record.pop(name, None)
    return [record for record in lines if kind in record or not kind]


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """All files but the lock, with the times at which they were written."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def assert_every_step_folder_loads(folder: Path) -> None:
    for path in step_folders(folder):
        state, _ = checkpoint.load(path)
        assert path.name == f"step-{state.step:08d}"


def assert_same_outcome(folder: Path, expected: Path) -> None:
    """The same last checkpoint, byte for byte, the same samples, and nothing left lying about."""
    last, expected_last = step_folders(folder)[-1], step_folders(expected)[-1]
    assert last.name == expected_last.name
    assert digests(last) == digests(expected_last)
    state, expected_state = checkpoint.load_state(last), checkpoint.load_state(expected_last)
    assert state == expected_state
    assert digests(folder / "samples") == digests(expected / "samples")
    hidden = {path.name for path in folder.rglob(".*")}
    assert hidden <= {".lock"}


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
