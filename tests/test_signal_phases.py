"""A signal at any moment, from reading the recipe to exporting: nothing is lost or left behind."""

import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

if sys.platform == "win32":
    pytest.skip("no fork server, no SIGHUP", allow_module_level=True)

from gptkit.training.saving import LARGE
from tests.test_resume import FORKING, PRELOADED, assert_same_outcome, exit_code

SIGNALLER = '''
"""Sends its own process the signal SIGNAL at the place SIGNAL_AT, once."""

import os
import signal
from dataclasses import replace

from gptkit.plugin import Callback, Split
from gptkit_char_text.dataset import CharText

STARTED = []


def at(place):
    if os.environ.get("SIGNAL_AT") == place:
        del os.environ["SIGNAL_AT"]
        signal.raise_signal(int(os.environ["SIGNAL"]))


class Watched(Split):
    def __init__(self, whole, place):
        self.whole, self.stride, self.place = whole, whole.stride, place

    def __len__(self):
        return len(self.whole)

    def __getitem__(self, indices):
        if STARTED:
            at(self.place)
        return self.whole[indices]


class WatchedText(CharText):
    """A text."""

    def load(self):
        at("load")
        data = super().load()
        return replace(data, train=Watched(data.train, "train"), val=Watched(data.val, "val"))


class Signaller(Callback):
    """Sends the signal at the third step."""

    contract = 1

    def on_fit_start(self, state):
        at("on_fit_start")
        STARTED.append(state)
        state.model.register_forward_pre_hook(
            lambda model, arguments: at("forward") if model.training and state.step == 2 else None
        )

    def on_step_start(self, state):
        if state.step == 2:
            at("on_step_start")

    def on_backward_end(self, state):
        if state.step == 2:
            at("on_backward_end")

    def on_step_end(self, state):
        if state.step == 3:
            at("on_step_end")

    def on_eval_end(self, state):
        at("on_eval_end")

    def on_save_end(self, state):
        at("on_save_end")

    def on_fit_end(self, state):
        at("on_fit_end")

    def weights(self):
        at("weights")

    def state_dict(self):
        at("state_dict")
        return {}
'''
PLACES = [
    "open:tiny.toml", "load", "open:environment.json", "open:recipe.toml", "on_fit_start",
    "on_step_start", "train", "forward", "on_backward_end", "on_step_end", "val", "weights",
    "on_eval_end", "state_dict", "open:state.json", "on_save_end",
    "on_fit_end",
]  # fmt: skip
"""Of a training. At `open:NAME` a file is opened that belongs to NAME."""
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE]
QUICK = [("on_backward_end", signal.SIGHUP, LARGE), ("open:state.json", signal.SIGTERM, 0)]

Gptkit = Callable[..., int]
Case = tuple[str, signal.Signals, int]


def _run(arguments: list[str], place: str, signum: int, folder: str, large: int) -> None:
    from gptkit.cli.app import main
    from gptkit.training import saving

    saving.LARGE = large

    os.chdir(folder)
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= {"SIGNAL_AT": place, "SIGNAL": str(int(signum))}

    def look(event: str, found: tuple[object, ...]) -> None:
        kind, _, name = os.environ.get("SIGNAL_AT", "").partition(":")
        path = os.path.abspath(str(found[0])) if found else ""  # noqa: PTH100
        if event == kind == "open" and name in path and path.startswith(folder):
            del os.environ["SIGNAL_AT"]
            signal.raise_signal(signum)

    sys.addaudithook(look)
    sys.argv = ["gptkit", *arguments]
    main()


@pytest.fixture
def gptkit_with_a_signal(
    distribution: Callable[..., Path], tiny_recipe: Callable[..., Path], tmp_path: Path
) -> Gptkit:
    """Runs `gptkit ARGS` in a process that gets a signal at a place; returns the exit code.

    Checkpoints of `large` bytes or more are written while training goes on.
    """
    entries = {"callbacks": "signaller = Signaller", "datasets": "watched-text = WatchedText"}
    distribution("gptkit-signaller", SIGNALLER, **entries)
    tiny_recipe(
        dataset={"use": "watched-text", "block_size": 16},
        train={"steps": 6, "eval_every": 2, "save_every": 3},
        callbacks=[{"use": "signaller"}, {"use": "log", "every": 1, "sample_tokens": 8}],
    )
    FORKING.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()

    def call(*args: object, place: str = "", signum: int = 0, large: int = LARGE) -> int:
        told = ([str(arg) for arg in args], place, signum, str(tmp_path), large)
        process = FORKING.Process(target=_run, args=told)
        process.start()
        return exit_code(process)

    return call


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("large", [LARGE, 0], ids=["between steps", "beside"])
@pytest.mark.parametrize("signum", SIGNALS, ids=lambda signum: signum.name)
def test_a_signal_in_any_phase_of_training(
    signum: signal.Signals, large: int, gptkit_with_a_signal: Gptkit, tmp_path: Path
) -> None:
    cases = [(place, signum, large) for place in PLACES]
    expect_the_same(gptkit_with_a_signal, tmp_path, cases)


def test_a_signal_in_a_phase_of_training(gptkit_with_a_signal: Gptkit, tmp_path: Path) -> None:
    expect_the_same(gptkit_with_a_signal, tmp_path, QUICK)


def expect_the_same(gptkit: Gptkit, folder: Path, cases: list[Case]) -> None:
    """Every run that a signal stopped ends like one that was not, after `resume` or `train`."""
    assert gptkit("train", "tiny.toml", "--out", "whole") == 0
    for i, (place, signum, large) in enumerate(cases):
        run = folder / f"run-{i}"
        code = gptkit(
            "train", "tiny.toml", "--out", run.name, place=place, signum=signum, large=large
        )
        ignored = signum == signal.SIGPIPE or place == "on_fit_end"
        if large == 0 and place in ("open:state.json", "on_save_end"):
            ignored = ignored or code == 0  # training goes on meanwhile, perhaps to its end
        assert code == (0 if ignored else 128 + signum), (place, signum)
        if code:
            again = ["resume", run.name] if run.exists() else ["train", "tiny.toml", "--out", run]
            assert gptkit(*again) == 0, (place, signum)
        assert_same_outcome(run, folder / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("signum", SIGNALS, ids=lambda signum: signum.name)
def test_a_signal_while_a_model_is_used(
    signum: signal.Signals, gptkit_with_a_signal: Gptkit, tmp_path: Path
) -> None:
    assert gptkit_with_a_signal("train", "tiny.toml", "--out", "r") == 0
    before = everything(tmp_path)
    commands: list[tuple[str, list[Any]]] = [
        ("open:state.json", ["sample", "r", "--tokens", 9]),
        ("open:state.json", ["eval", "r"]),
        ("load", ["eval", "r"]),
        ("open:state.json", ["export", "r", "--onnx"]),
        ("open:.onnx", ["export", "r", "--onnx"]),
    ]
    for place, command in commands:
        code = gptkit_with_a_signal(*command, place=place, signum=signum)
        if signum == signal.SIGPIPE:
            assert code == 0, command
        else:
            assert code == 128 + signum, (place, command)
            assert everything(tmp_path) == before, (place, command)


def everything(folder: Path) -> set[Path]:
    """All files but locks, and but what the data set may encode again."""
    return {path for path in folder.rglob("*") if path.suffix != ".lock" and path.name != ".lock"}
