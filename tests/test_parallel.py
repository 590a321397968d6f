"""Many processes, started by the real torchrun over gloo: the same curve, files and manners as one.

Each start costs seconds on two cores, so runs are shared between tests where they can be.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli_w
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from gptkit.errors import UsageError
from gptkit.runs import checkpoint
from gptkit.runs.state import State
from gptkit.training import distributed, torchrun
from gptkit.training.distributed import Ranks

if sys.platform == "win32":
    pytest.skip("torchrun's signals are those of Unix", allow_module_level=True)

PLUGIN = '''
import atexit
import os
from dataclasses import replace
from pathlib import Path

from gptkit.plugin import IGNORE, Callback, Split
from pydantic import PrivateAttr
from gptkit_char_text.dataset import CharText


class Masked(Split):
    """Of three windows in a row one is masked, one begins masked and one is whole."""

    def __init__(self, whole):
        self.whole, self.stride = whole, whole.stride

    def __len__(self):
        return len(self.whole)

    def __getitem__(self, indices):
        x, y = self.whole[indices]
        y[indices % 3 == 0] = IGNORE
        y[indices % 3 == 1, :9] = IGNORE
        return x, y


class MaskedText(CharText):
    """A text of which not every target counts."""

    def load(self):
        data = super().load()
        return replace(data, train=Masked(data.train), val=Masked(data.val))


class StopOnTheOther(Callback):
    """Asks for the end after step 3, on rank 1 alone; offers weights on rank 0 alone."""

    contract = 1
    _weights: dict = PrivateAttr(default_factory=dict)

    def on_fit_start(self, state):
        if state.rank == 0:
            for name in ("copy", "again"):
                self._weights[name] = dict(state.model.named_parameters())

    def weights(self):
        return self._weights

    def on_step_end(self, state):
        state.stop = state.rank == 1 and state.step == 3


class FailOnTheOther(Callback):
    """Fails after step 3 on rank 1 alone, by itself or in what all ranks do together."""

    contract = 1
    together: bool = False

    def on_step_end(self, state):
        if state.step == 3 and self.together:
            state.evaluate("val" if state.rank == 0 else Broken(), batches=1)
        elif state.step == 3 and state.rank == 1:
            raise LookupError("on one rank")


class Broken(Split):
    def __len__(self):
        return 100

    def __getitem__(self, indices):
        raise LookupError("on one rank")


class Restless(Callback):
    """Splits the groups, lets the batch grow, keeps an average and a sum of the gradients."""

    contract = 1
    _average: dict = PrivateAttr(default_factory=dict)
    _sums: dict = PrivateAttr(default_factory=dict)

    def on_fit_start(self, state):
        if state.step == 0:
            state.split_groups(lambda name: name.split(".")[1] if name.startswith("h.") else "out")
            for i, group in enumerate(state.optimizer.param_groups):
                group["initial_lr"] *= 0.9**i
        for name, parameter in state.model.named_parameters():
            self._average.setdefault(name, parameter.detach().clone())

    def on_step_start(self, state):
        state.batch_size = {3: 12, 10: 16}.get(state.step, state.batch_size)

    def on_backward_end(self, state):
        for name, parameter in state.model.named_parameters():
            self._sums[name] = self._sums.get(name, 0) + parameter.grad

    def on_step_end(self, state):
        for name, parameter in state.model.named_parameters():
            self._average[name].lerp_(parameter.detach(), 0.1)

    def on_eval_end(self, state):
        state.metrics["train_loss"] = state.evaluate("train", batches=2)

    def weights(self):
        return {"ema": self._average}

    def load_weights(self, weights):
        self._average = {name: tensor.clone() for name, tensor in weights["ema"].items()}

    def state_dict(self):
        return {"list": [{"sums": self._sums}]}

    def load_state_dict(self, state):
        self._sums = state["list"][0]["sums"]


class Farewell(Callback):
    """Says what of Python's end a process comes to: its handlers, its taking itself down."""

    contract = 1

    def on_fit_end(self, state):
        name = f"{state.rank}-of-{os.environ.get('WORLD_SIZE', 1)}"
        atexit.register(Path(f"{name}.exit").touch)
        globals()["kept"] = LastWords(Path(f"{name}.down"))  # until modules are taken apart


class LastWords:
    def __init__(self, path):
        self.write = path.touch

    def __del__(self):
        self.write()
'''

STEPS = 50
CALLBACKS = [
    {"use": "lr-decay", "warmup_steps": 5},
    {"use": "grad-clip", "max_norm": 0.5},
    {"use": "ema", "decay": 0.9},
    {"use": "log", "every": 1, "sample_tokens": 20},
    {"use": "farewell"},
]
RECIPE: dict[str, Any] = {
    "seed": 1,
    "dataset": {"use": "masked-text", "block_size": 16},
    "model": {
        "n_layer": 2, "n_head": 2, "n_embd": 32, "position": "rotary", "norm": "rmsnorm",
    },
    "train": {
        "steps": STEPS, "batch_size": 8, "micro_batch_size": 2, "eval_every": 25,
        "eval_batches": 7, "device": "cpu",
    },
    "callbacks": CALLBACKS,
}  # fmt: skip
"""Accumulation, masked targets (in whole micro-batches, too), clipping, tables in buffers."""
ENDLESS = ["--set", "train.steps=1000000", "--set", "train.eval_every=1000000"]

Launch = Callable[..., "subprocess.Popen[str]"]


class Workshop:
    """A folder with a recipe and a plugin, in which processes train."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = folder / "recipe.toml"
        self.recipe.write_text(tomli_w.dumps(RECIPE))
        info = folder / "site" / "masked-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / "site" / "masked_text.py").write_text(PLUGIN)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: masked\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            "[gptkit.datasets]\nmasked-text = masked_text:MaskedText\n"
            "[gptkit.callbacks]\nstop-on-the-other = masked_text:StopOnTheOther\n"
            "farewell = masked_text:Farewell\nrestless = masked_text:Restless\n"
            "fail-on-the-other = masked_text:FailOnTheOther\n"
        )
        path = os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", "")])
        self.env = os.environ | {"PYTHONPATH": path}

    def start(
        self, ranks: int, *args: object, flags: Sequence[str] = ()
    ) -> "subprocess.Popen[str]":
        """`gptkit ARGS` as one process, or through torchrun."""
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), *flags]
        command = [sys.executable, *(launcher if ranks > 1 or flags else []), "-m", "gptkit"]
        return subprocess.Popen(
            [*command, *map(str, args)], cwd=self.folder, env=self.env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, ranks: int, *args: object, flags: Sequence[str] = ()) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        process = self.start(ranks, *args, flags=flags)
        try:
            stdout, stderr = process.communicate(timeout=200)
        finally:
            end(process)
        return process.returncode, stdout, stderr

    def train(self, name: str, ranks: int, *sets: str) -> Path:
        """A finished run of the recipe."""
        options = [part for setting in sets for part in ("--set", setting)]
        code, stdout, stderr = self.run(ranks, "train", self.recipe, "--out", name, *options)
        assert code == 0, stderr
        assert stdout == f"{name}\n"
        return self.folder / name


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def alone(workshop: Workshop) -> Path:
    return workshop.train("alone", 1)


@pytest.fixture(scope="module")
def two(workshop: Workshop) -> Path:
    return workshop.train("two", 2)


@pytest.fixture(scope="module")
def four(workshop: Workshop) -> Path:
    return workshop.train("four", 4)


@pytest.fixture(scope="module")
def sharded(workshop: Workshop) -> Path:
    return workshop.train("sharded", 2, "train.shard=true")


@pytest.fixture
def launch(workshop: Workshop) -> Iterator[Launch]:
    """Starts processes that are gone after the test."""
    started: list[subprocess.Popen[str]] = []

    def call(*args: Any, **options: Any) -> "subprocess.Popen[str]":
        started.append(workshop.start(*args, **options))
        return started[-1]

    yield call
    for process in started:
        end(process)


GROUPS = [
    "two",
    pytest.param("four", marks=pytest.mark.slow),
    pytest.param("sharded", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("group", GROUPS)
def test_the_loss_curve_is_that_of_one_process(
    group: str, alone: Path, request: pytest.FixtureRequest
) -> None:
    found, expected = curves(request.getfixturevalue(group)), curves(alone)
    assert [step for step, _ in expected["loss"]] == list(range(1, STEPS + 1))
    assert [step for step, _ in expected["val_loss"]] == [25, 50]
    tolerances = {
        "loss": 1e-5, "val_loss": 1e-6, "val_loss_ema": 1e-6, "grad_norm": 1e-4, "lr": 0
    }  # fmt: skip
    for kind, tolerance in tolerances.items():
        assert [step for step, _ in found[kind]] == [step for step, _ in expected[kind]]
        values = [value for _, value in expected[kind]]
        assert [value for _, value in found[kind]] == pytest.approx(values, abs=tolerance), kind
    assert max(value for _, value in expected["grad_norm"]) > 0.5, "nothing was clipped"


@pytest.mark.parametrize("group", GROUPS)
def test_run_folder_and_checkpoints_are_those_of_one_process(
    group: str, alone: Path, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(group)
    paths = {path.relative_to(alone) for path in alone.rglob("*") if path.is_file()}
    assert paths == {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
    for path in paths:
        if path.suffix == ".safetensors":
            assert layout(run / path) == layout(alone / path)
    for mine, other in zip(states(run), states(alone), strict=True):
        same = {"sha256": {}, "val_loss": None, "val_losses": {}}
        assert mine.model_copy(update=same) == other.model_copy(update=same)
    sample = Path("samples/step-00000025.txt")
    assert (run / sample).read_bytes() == (alone / sample).read_bytes()


@pytest.mark.parametrize(
    ("source", "ranks"),
    [
        ("two", 1),
        *[
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("alone", 2), ("four", 2), ("sharded", 1), ("sharded", 4)]
        ],
    ],
)
def test_a_run_is_resumed_on_another_number_of_processes(
    source: str, ranks: int, alone: Path, workshop: Workshop, request: pytest.FixtureRequest
) -> None:
    run = workshop.folder / f"{source}-on-{ranks}"
    shutil.copytree(request.getfixturevalue(source), run)
    shutil.rmtree(run / "checkpoints/step-00000050")
    code, stdout, stderr = workshop.run(ranks, "resume", run.name)
    assert code == 0, stderr
    assert stdout == f"{run.name}\n"
    assert stderr.count(", from step 25\n") == 1
    found, expected = curves(run), curves(alone)
    for kind in ("loss", "val_loss_ema"):
        values = [value for _, value in expected[kind]]
        assert [value for _, value in found[kind]] == pytest.approx(values, abs=1e-5), kind
    assert states(run)[-1].step == STEPS


@pytest.mark.slow
def test_dropout_differs_between_ranks_and_a_resumed_run_repeats_it(workshop: Workshop) -> None:
    sets = ["model.dropout=0.3", "train.steps=6", "train.eval_every=3"]
    full_tensor = workshop.train("dropout", 2, *sets)
    again = workshop.folder / "dropout-again"
    shutil.copytree(full_tensor, again)
    shutil.rmtree(again / "checkpoints/step-00000006")
    code, _, stderr = workshop.run(2, "resume", again.name)
    assert code == 0, stderr
    files = [run / "checkpoints/step-00000006/model.safetensors" for run in (full_tensor, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_ranks_end_before_python_takes_itself_down(
    two: Path, alone: Path, workshop: Workshop
) -> None:
    """One of gloo's threads that lets go of a tensor meanwhile would abort a finished run."""
    ended = {path.name for path in workshop.folder.glob("*.exit")}
    assert ended >= {"0-of-1.exit", "0-of-2.exit", "1-of-2.exit"}
    assert {path.name for path in workshop.folder.glob("*.down")} == {"0-of-1.down"}


def test_one_set_of_lines_is_printed(launch: Launch, workshop: Workshop) -> None:
    process = launch(2, "train", workshop.recipe, "--out", "terminated", *ENDLESS)
    read = read_until("step 3/", process)
    process.terminate()
    stdout, rest = process.communicate(timeout=60)
    step = int(re.findall(r"(?m)^step (\d+)/", read + rest)[-1])
    lines = (read + rest).splitlines()

    assert stdout == ""
    assert process.returncode != 0
    assert lines.count(f"error: stopped by SIGTERM at step {step}, checkpoint saved") == 1
    assert lines.count("hint:  gptkit resume terminated") == 1
    assert sum("M parameters on 2 x cpu in float32" in line for line in lines) == 1
    shown = [line.split()[1] for line in lines if re.match(r"step \d+/\d+  loss", line)]
    assert shown == [f"{i}/1000000" for i in range(1, step + 1)]
    assert saved_steps(workshop.folder / "terminated") == [step]


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_one_rank_stops_all_of_them(
    signum: signal.Signals, launch: Launch, workshop: Workshop
) -> None:
    folder = workshop.folder / f"signalled-{signum.name}"
    process = launch(2, "train", workshop.recipe, "--out", folder.name, *ENDLESS)
    read_until("step 3/", process)
    second = ranks_of(process)[1]
    second.send_signal(signum)
    _, rest = process.communicate(timeout=60)
    assert re.search(rf"exitcode\s*: {128 + signum} ", rest), rest
    assert rest.count(f"error: stopped by {signum.name} at step ") == 1
    assert len(saved_steps(folder)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["false", "true"])
def test_what_callbacks_change_is_resumed_exactly(shard: str, workshop: Workshop) -> None:
    """Weight sets, nested tensors, split groups and the batch size: every byte is the same."""
    recipe = workshop.folder / "restless.toml"
    callbacks = [{"use": "lr-decay", "warmup_steps": 2}, {"use": "restless"}]
    train = RECIPE["train"] | {"steps": 12, "eval_every": 4, "eval_batches": 2}
    recipe.write_text(tomli_w.dumps(RECIPE | {"train": train, "callbacks": callbacks}))
    whole, again = (workshop.folder / f"restless-{name}-{shard}" for name in ("whole", "again"))
    shards = ["--set", f"train.shard={shard}"]
    code, _, stderr = workshop.run(2, "train", recipe, "--out", whole.name, *shards)
    assert code == 0, stderr
    shutil.copytree(whole, again, symlinks=True)
    shutil.rmtree(again / "checkpoints/step-00000012")
    code, _, stderr = workshop.run(2, "resume", again.name)
    assert code == 0, stderr
    assert ", from step 8\n" in stderr

    last = Path("checkpoints/step-00000012")
    names = {path.name for path in (whole / last).iterdir()}
    assert {"model.ema.safetensors", "callbacks.safetensors"} < names
    for name in names:
        assert (again / last / name).read_bytes() == (whole / last / name).read_bytes(), name
    state = checkpoint.load_state(whole / last)
    assert (state.tokens, state.batch_size) == (16 * (3 * 8 + 7 * 12 + 2 * 16), 16)
    assert [group["name"] for group in state.optimizer_groups][:2] == ["decayed/out", "decayed/0"]
    sums = checkpoint.load_tensors(whole / last, state, "callbacks")
    shapes = {
        name: tensor.shape for name, tensor in checkpoint.load_tensors(whole / last, state).items()
    }
    found = {key.removeprefix("restless/list/0/sums/"): t.shape for key, t in sums.items()}
    assert found == shapes


@pytest.mark.slow
def test_a_rank_without_a_part_of_a_vector_trains_along(workshop: Workshop) -> None:
    """Norms of two numbers on four ranks: two of them hold an empty part."""
    sets = ["model.n_head=1", "model.n_embd=2", "train.steps=2", "train.eval_every=1"]
    losses = [
        curves(workshop.train(f"narrow-{ranks}", ranks, "train.shard=true", *sets))["val_loss"]
        for ranks in (1, 4)
    ]
    values = [[value for _, value in curve] for curve in losses]
    assert values[1] == pytest.approx(values[0], abs=1e-5)


@pytest.mark.slow
def test_a_callback_of_any_rank_ends_training_and_one_alone_may_offer_weights(
    workshop: Workshop,
) -> None:
    callbacks = [{"use": "stop-on-the-other"}, *CALLBACKS]
    recipe = workshop.folder / "stopping.toml"
    recipe.write_text(tomli_w.dumps(RECIPE | {"callbacks": callbacks}))
    often = ["--set", "train.eval_every=2"]
    code, _, stderr = workshop.run(2, "train", recipe, "--out", "stopping", *often)
    assert code == 0, stderr
    assert saved_steps(workshop.folder / "stopping") == [2, 3]
    state = checkpoint.load_state(workshop.folder / "stopping/checkpoints/step-00000002")
    assert (set(state.val_losses), set(state.weights)) == ({"ema"}, {"copy", "again", "ema"})


@pytest.mark.slow
@pytest.mark.parametrize(("together", "shard"), [(False, "true"), (True, "false")])
def test_a_callback_that_fails_on_one_rank_ends_all_and_saves_unless_they_act_together(
    together: bool, shard: str, workshop: Workshop
) -> None:
    name = f"failing-{together}-{shard}"
    callbacks = [{"use": "fail-on-the-other", "together": together}, *CALLBACKS]
    recipe = workshop.folder / "failing.toml"
    recipe.write_text(tomli_w.dumps(RECIPE | {"callbacks": callbacks}))
    options = ["--set", "train.eval_every=2", "--set", f"train.shard={shard}", "--out", name]
    code, _, stderr = workshop.run(2, "train", recipe, *options)
    assert code == 1
    assert stderr.count("LookupError: on one rank") == 1, stderr
    assert saved_steps(workshop.folder / name) == ([2] if together else [2, 3])


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ("train.micro_batch_size=1", "error: train.batch_size: 9 sequences cannot be divided"),
        pytest.param(
            "dataset.path=/nowhere", "error: /nowhere: ", marks=pytest.mark.slow, id="data"
        ),
        pytest.param("train.stepz=1", "--set train.stepz: unknown key", marks=pytest.mark.slow),
    ],
)
def test_a_mistake_is_told_once(setting: str, fault: str, workshop: Workshop) -> None:
    before = sorted(workshop.folder.iterdir())
    odd = ["--set", "train.batch_size=9"] if "batch" in setting else []
    code, stdout, stderr = workshop.run(
        2, "train", workshop.recipe, "--set", setting, *odd, "--out", "mistaken"
    )
    assert code != 0
    assert stdout == ""
    assert stderr.count("error: ") == stderr.count(fault) == 1, stderr
    assert "exitcode  : 2 " in stderr
    assert sorted(workshop.folder.iterdir()) == before


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_job_and_leaves_a_good_checkpoint(
    victim: int, launch: Launch, workshop: Workshop
) -> None:
    name = f"killed-{victim}"
    process = launch(
        2, "train", workshop.recipe, "--out", name, "--set", "train.save_every=5", *ENDLESS
    )
    read_until("step 13/", process)
    ranks_of(process)[victim].kill()
    _, rest = process.communicate(timeout=60)
    assert process.returncode != 0
    assert rest.count("error: another process of this run has ended") == 1

    saved = saved_steps(workshop.folder / name)[-1]
    recipe = workshop.folder / name / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("steps = 1000000", f"steps = {saved + 2}"))
    code, _, stderr = workshop.run(1, "resume", name)
    assert code == 0, stderr
    assert f"from step {saved}\n" in stderr
    assert saved_steps(workshop.folder / name)[-1] == saved + 2


@pytest.mark.slow
@pytest.mark.parametrize("out", [["--out", "restarted"], []], ids=["named", "unnamed"])
def test_max_restarts_resumes_by_itself(
    out: list[str], alone: Path, launch: Launch, workshop: Workshop
) -> None:
    before = set((workshop.folder / "runs").glob("*"))
    process = launch(
        2, "train", workshop.recipe, *out, "--set", "train.save_every=5",
        flags=["--max-restarts", "1"],
    )  # fmt: skip
    read_until("step 13/", process)
    ranks_of(process)[1].kill()
    stdout, rest = process.communicate(timeout=100)
    assert process.returncode == 0, rest
    assert re.search(r"(?m), from step (10|15|20)$", rest)
    made = {*(workshop.folder / "runs").glob("*")} - before
    run = workshop.folder / stdout.strip()
    assert made == (set() if out else {run})
    losses = [value for _, value in curves(run)["loss"]]
    assert losses == pytest.approx([value for _, value in curves(alone)["loss"]], abs=1e-5)


@pytest.mark.slow
def test_a_restart_before_the_first_checkpoint_begins_again_in_the_same_folder(
    launch: Launch, workshop: Workshop
) -> None:
    sets = ["--set", "train.eval_every=50", "--out", "early"]
    process = launch(2, "train", workshop.recipe, *sets, flags=["--max-restarts", "1"])
    read_until("step 3/", process)
    ranks_of(process)[0].kill()
    _, rest = process.communicate(timeout=100)
    assert process.returncode == 0, rest
    assert ", which has no checkpoint yet, from its start\n" in rest
    run = workshop.folder / "early"
    assert [step for step, _ in curves(run)["loss"]] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_two_machines_meet_again_after_one_of_them_lost_a_process(
    alone: Path, launch: Launch, workshop: Workshop
) -> None:
    """Each torchrun stands for a machine; only the one that lost a process counts a restart."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    flags = [
        "--nnodes=2", "--max-restarts=1", "--rdzv-backend=c10d", "--rdzv-id=pair",
        f"--rdzv-endpoint={endpoint}",
    ]  # fmt: skip
    sets = ["--out", "machines", "--set", "train.save_every=5"]
    machines = [launch(1, "train", workshop.recipe, *sets, flags=flags) for _ in range(2)]
    metrics = workshop.folder / "machines/metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 13:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    processes = [child for machine in machines for child in ranks_of(machine)]
    next(child for child in processes if child.environ()["RANK"] == "1").kill()
    said = [machine.communicate(timeout=100) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert sorted(stdout for stdout, _ in said) == ["", "machines\n"]
    losses = [value for _, value in curves(workshop.folder / "machines")["loss"]]
    assert losses == pytest.approx([value for _, value in curves(alone)["loss"]], abs=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("shard", ["false", "true"])
def test_compiled_models_train_together(shard: str, alone: Path, workshop: Workshop) -> None:
    sets = [f"train.shard={shard}", "train.compile=true", "train.recompute=true", "train.steps=4"]
    losses = curves(workshop.train(f"compiled-{shard}", 2, *sets))["loss"]
    assert losses[0] == pytest.approx(curves(alone)["loss"][0], abs=1e-5)


@pytest.mark.slow
def test_one_process_of_torchrun_trains_as_without_it(alone: Path, workshop: Workshop) -> None:
    sets = ["--set", "train.steps=5", "--set", "train.shard=true", "--set", "train.eval_every=5"]
    flags = ["--nnodes", "1"]
    code, _, stderr = workshop.run(
        1, "train", workshop.recipe, *sets, "--out", "single", flags=flags
    )
    assert code == 0, stderr
    found, expected = curves(workshop.folder / "single")["loss"], curves(alone)["loss"][:5]
    assert [value for _, value in found][:4] == [value for _, value in expected][:4]


def test_without_torchrun_nothing_distributed_is_initialised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with distributed.join() as ranks:
        assert ranks is distributed.ALONE
        assert not torch.distributed.is_initialized()


def test_a_batch_is_shared_out_evenly_or_refused() -> None:
    parts = [Ranks(rank=rank, size=3).batch_slice(6) for rank in range(3)]
    assert [list(range(6))[part] for part in parts] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(UsageError, match=r"8 sequences .* 3 processes") as caught:
        Ranks(size=3).batch_slice(8)
    assert caught.value.hint
    assert "train.batch_size=9" in caught.value.hint


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 6])
def test_batches_are_sharded_so_that_each_counts_once(size: int, count: int) -> None:
    batches = [(torch.tensor([i]), torch.tensor([i])) for i in range(count)]
    hands = [list(Ranks(rank=rank, size=size).shard(batches)) for rank in range(size)]
    assert len({len(hand) for hand in hands}) == 1
    counted = sorted(int(y) for hand in hands for _, y in hand if y != -100)
    assert counted == list(range(count))


def test_what_torchrun_says_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    said |= {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "2"}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    ranks = distributed.from_environment()
    assert (ranks.rank, ranks.size, ranks.local_rank, ranks.first) == (5, 8, 1, False)
    assert ranks.restarted
    assert ranks.job not in (None, "none")


def test_a_rank_without_torchrun_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other launchers set RANK, too; such a process trains alone and is the first."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("RANK", "1")
    assert torchrun.rank() == 0
    assert distributed.from_environment() == Ranks()


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What metrics.jsonl holds: (step, value) by name."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            found.setdefault(name, []).append((record["step"], value))
    return found


def layout(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of every tensor in a file, by name."""
    with safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}


def states(run: Path) -> list[State]:
    return [checkpoint.load(path)[0] for path in checkpoint.step_folders(run / "checkpoints")]


def saved_steps(run: Path) -> list[int]:
    return [state.step for state in states(run)]


def read_until(text: str, process: "subprocess.Popen[str]") -> str:
    """What a process says up to the first line that starts with `text`."""
    assert process.stderr
    read = ""
    for line in process.stderr:
        read += line
        if line.startswith(text):
            return read
    pytest.fail(f"it ended without a line that starts with {text!r}:\n{read}")


def ranks_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes that torchrun has started, by rank."""
    children = psutil.Process(process.pid).children()
    return sorted(children, key=lambda child: int(child.environ()["RANK"]))


def end(process: "subprocess.Popen[str]") -> None:
    """Kill what is left of a process and its children."""
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
    process.communicate()


TUNED = {"model.freeze": 'model.freeze=["wte", "h.0"]', "lora": "lora.rank=2"}


@pytest.mark.parametrize(
    ("tuned", "shard"),
    [("lora", False), ("lora", True), ("model.freeze", False), ("model.freeze", True)],
)
@pytest.mark.slow
def test_frozen_weights_and_adapters_are_trained_as_by_one_process(
    tuned: str, shard: bool, workshop: Workshop, alone: Path
) -> None:
    name = f"{tuned}-{shard}"
    sets = [part for each in (TUNED[tuned], "train.steps=12", "train.eval_every=6")
            for part in ("--set", each)]  # fmt: skip
    command = ("train", workshop.recipe, "--from", alone, *sets)
    assert workshop.run(1, *command, "--out", f"{name}-1")[0] == 0
    sharded = ("--set", f"train.shard={str(shard).lower()}")
    code, _, stderr = workshop.run(2, *command, *sharded, "--out", f"{name}-2")
    assert code == 0, stderr
    one, two = (workshop.folder / f"{name}-{n}" for n in (1, 2))
    for file in one.glob("checkpoints/last/*.safetensors"):
        if not file.name.startswith(("optimizer", "callbacks")):
            found = load_file(two / file.relative_to(one))
            for key, tensor in load_file(file).items():
                torch.testing.assert_close(found[key], tensor, atol=2e-5, rtol=1e-4)
    if tuned == "lora":
        assert (one / "base.safetensors").read_bytes() == (two / "base.safetensors").read_bytes()
    steps = two / "checkpoints"
    expected = (steps / "last" / "model.safetensors").read_bytes()
    shutil.rmtree(steps / "step-00000012")
    code, _, stderr = workshop.run(2, "resume", two)
    assert code == 0, stderr
    assert (steps / "last" / "model.safetensors").read_bytes() == expected
    assert workshop.run(1, "resume", two, "--set", "train.steps=14")[0] == 0
