"""Run folders that are moved, deleted or half made; which run is the newest."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from threading import Event, Thread
from time import process_time
from typing import Any

import pytest
from typer.testing import Result

from gptkit.errors import CheckpointError, GptkitError, RunError
from gptkit.plugin import Callback, TrainState
from gptkit.runs import checkpoint, checkpoint_writer, train
from gptkit.runs.loaded import load_checkpoint
from gptkit.runs.run_folder import RunFolder, list_runs
from gptkit.runs.train import Caller
from gptkit.terminal import harmless

Command = Callable[..., Result]
TinyRecipe = Callable[..., Path]


class AtStep(Callback):
    """Does something to the run folder during a step, or before its evaluation is logged."""

    contract = 1

    step: int
    act: Callable[[Path], object]
    evaluating: bool = False

    def on_step_start(self, state: TrainState) -> None:
        if state.step + 1 == self.step and state.run_dir and not self.evaluating:
            self.act(state.run_dir)

    def on_eval_end(self, state: TrainState) -> None:
        if state.step == self.step and state.run_dir and self.evaluating:
            self.act(state.run_dir)


def move(run_dir: Path) -> None:
    run_dir.rename(run_dir.with_name("moved"))


def move_and_put_a_folder(run_dir: Path) -> None:
    move(run_dir)
    run_dir.mkdir()
    (run_dir / "environment.json").write_text("mine")
    (run_dir / ".lock").touch()


def move_and_put_a_file(run_dir: Path) -> None:
    move(run_dir)
    run_dir.write_text("mine")


def delete(run_dir: Path) -> None:
    shutil.rmtree(run_dir)


def delete_and_put_a_folder(run_dir: Path) -> None:
    delete(run_dir)
    run_dir.mkdir()  # often with the inode of the deleted one


@pytest.mark.parametrize("every", [{"save_every": 1, "eval_every": 1}, {"eval_every": 9}])
@pytest.mark.parametrize(
    "act",
    [move, move_and_put_a_folder, move_and_put_a_file, delete, delete_and_put_a_folder],
)
def test_a_run_folder_that_goes_away_ends_training_and_nothing_is_deleted_or_made(
    act: Callable[[Path], object], every: dict[str, int], tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    out, moved = tmp_path / "r", tmp_path / "moved"
    recipe = tiny_recipe(train={"steps": 9} | every)

    def watched(run_dir: Path) -> None:
        act(run_dir)
        left.append(contents(out))

    left: list[Any] = []
    with pytest.raises(RunError) as raised:
        train.train(recipe, out=out, report=print, caller=Caller(AtStep(step=3, act=watched)))

    assert str(raised.value) == f"{out}: was moved or deleted while it was trained"
    assert (
        raised.value.hint == "its last checkpoint is where the folder is now: gptkit resume FOLDER"
    )
    assert contents(out) == left[0]
    if moved.exists():
        expected = ["step-00000001", "step-00000002"] if "save_every" in every else []
        found = checkpoint.step_folders(moved / "checkpoints")
        assert [path.name for path in found] == expected
        train.resume(moved, report=print)
        assert RunFolder(moved).step_folder().name == "step-00000009"


def test_a_resumed_run_whose_folder_goes_away_ends_likewise(
    tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    out = tmp_path / "r"
    train.train(tiny_recipe(), out=out, report=print)
    with pytest.raises(RunError, match="was moved or deleted while it was trained"):
        train.resume(out, ["train.steps=9"], report=print, caller=Caller(AtStep(step=6, act=move)))
    assert not out.exists()
    assert RunFolder(tmp_path / "moved").step_folder().name == "step-00000004"


@pytest.mark.parametrize("made_before", [[], ["a"], ["a/b/r"]])
def test_a_run_that_cannot_begin_leaves_what_was_there(
    made_before: list[str], tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    for folder in made_before:
        (tmp_path / folder).mkdir(parents=True)
    before = contents(tmp_path / "a")
    train.train(tiny_recipe(), out=tmp_path / "other", report=print)
    with pytest.raises(GptkitError, match="n_layer"):  # as late as possible: the model is made
        train.train(
            tiny_recipe(model={"n_layer": 2}),
            out=tmp_path / "a/b/r",
            start=tmp_path / "other",
            report=print,
        )
    assert contents(tmp_path / "a") == before


def test_where_runs_cannot_be_made_no_other_name_is_tried(
    tiny_recipe: TinyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").symlink_to("nowhere")
    with pytest.raises(RunError, match="runs: cannot be written: File exists"):
        train.train(tiny_recipe(), report=print)


@pytest.mark.parametrize("act", [move, delete])
@pytest.mark.parametrize("sample_tokens", [0, 4])  # saving fails, or writing the sample
def test_what_cannot_be_written_because_the_folder_is_gone_says_so(
    act: Callable[[Path], object], sample_tokens: int, tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe(callbacks=[{"use": "log", "sample_tokens": sample_tokens}])
    caller = Caller(AtStep(step=2, act=act, evaluating=True))
    with pytest.raises(RunError, match="was moved or deleted while it was trained"):
        train.train(recipe, out=tmp_path / "r", report=print, caller=caller)
    assert not (tmp_path / "r").exists()


# The newest run.


def test_the_newest_run_is_the_one_that_was_trained_last(
    cli: Command, tiny_recipe: TinyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b", "c", "a"):
        assert cli("train", tiny_recipe(), "--out", f"runs/{name}").exit_code == 0
    assert names() == ["b", "c", "a"]
    for name in ("a", "c", "b"):  # as `cp -r` and a clone may leave the times
        os.utime(tmp_path / "runs" / name / "recipe.toml")
    assert names() == ["b", "c", "a"]

    assert cli("resume", "runs/c").exit_code == 0  # is complete: nothing is trained
    assert names() == ["b", "c", "a"]
    monkeypatch.setattr("time.time", lambda: 1e9)  # the clock went back
    assert cli("resume", "runs/b", "--set", "train.steps=6").exit_code == 0
    assert names() == ["c", "a", "b"]
    assert cli("train", tiny_recipe(), "--out", "runs/d").exit_code == 0
    assert names() == ["c", "a", "b", "d"]


def test_runs_without_the_time_come_before_the_others_by_their_recipes(
    cli: Command, tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    for name in ("d", "a", "b", "c"):
        assert cli("train", tiny_recipe(), "--out", f"runs/{name}").exit_code == 0
    for name, trained in {"a": None, "b": "1", "c": float("nan")}.items():
        run = RunFolder(Path("runs") / name)
        run.environment.write_text(json.dumps(run.read_environment() | {"trained": trained}))
        os.utime(run.recipe, (0, -ord(name)))
    assert names() == ["c", "b", "a", "d"]


# Damaged runs, and runs beside a training.


@pytest.fixture
def damaged(cli: Command, tiny_recipe: TinyRecipe) -> Path:
    """A run, runs/bad, with nothing that can be read but its checkpoints, beside a good one."""
    assert cli("train", tiny_recipe(), "--out", "runs/good").exit_code == 0
    bad = Path("runs/bad")
    shutil.copytree("runs/good", bad, symlinks=True)
    (bad / "recipe.toml").write_bytes(b"seed = \xff\n")
    (bad / "environment.json").write_text('{"changes": ' + "[" * 99_999)
    (bad / "metrics.jsonl").unlink()
    os.mkfifo(bad / "metrics.jsonl")
    return bad


def test_a_damaged_run_is_listed_and_shown(cli: Command, damaged: Path) -> None:
    shown = cli("runs", "list").stdout.splitlines()
    assert [line.split()[:2] for line in shown[1:]] == [["runs/bad", "4"], ["runs/good", "4"]]
    shown = cli("runs", "show", damaged).stdout.splitlines()
    assert shown[-1] == "seed = \ufffd"
    assert json.loads(cli("runs", "show", damaged, "--json").stdout)["environment"] == {}
    (damaged / "environment.json").write_text('{"device": "\\ud800"}')
    assert "device       \ufffd\n" in cli("runs", "show", damaged).stdout
    assert cli("sample", damaged, "--tokens", 4).exit_code == 0


def test_what_cannot_be_compared_is_left_out(cli: Command, damaged: Path) -> None:
    Path("runs/other").mkdir()
    result = cli("runs", "compare", "runs/good", damaged, "runs/other", "--json")
    assert [row["run"] for row in json.loads(result.stdout)] == ["runs/good"]
    left_out = result.stderr.splitlines()
    assert left_out[0].startswith("left out: runs/bad/recipe.toml: cannot be read: ")
    assert left_out[1] == "left out: runs/other: not a run folder (no recipe.toml)"
    assert cli("runs", "compare", damaged).exit_code == 2
    assert cli("runs", "compare", "runs/good", "runs/goof").exit_code == 2


@pytest.mark.parametrize(
    "record",
    [3, {"run": "runs/good"}, {"run": "r", "step": "1", "weights": None, "sha256": ""}, "damaged"],
)
def test_a_run_whose_beginning_is_unknown_does_not_begin_anew(
    record: object, cli: Command, tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    run = RunFolder(Path("r"))
    assert cli("train", tiny_recipe(), "--out", "r").exit_code == 0
    shutil.rmtree(run.checkpoints)
    about = run.read_environment() | {"from": record}
    run.environment.write_text("{" if record == "damaged" else json.dumps(about))
    result = cli("resume", "r")
    assert result.exit_code == 1
    assert "error: r/environment.json: damaged, so that the weights" in result.stderr
    assert not run.checkpoints.exists()


def test_a_step_folder_that_is_pruned_meanwhile_is_looked_for_again(
    tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    train.train(tiny_recipe(train={"keep": 2}), out=tmp_path / "r", report=print)
    run = RunFolder(tmp_path / "r")

    def read(step_folder: Path) -> int:
        if step_folder.name == "step-00000004":  # a training deletes it at this moment
            shutil.rmtree(step_folder)
        return checkpoint.load_state(step_folder).step

    assert run.read_step("last", read) == 2
    with pytest.raises(RunError, match="no checkpoint 4"):
        run.read_step(4, read)
    (run.step_folder(2) / "state.json").write_text("")
    with pytest.raises(CheckpointError, match="damaged"):
        run.read_step(2, checkpoint.load_state)


def test_a_run_is_sampled_while_its_checkpoints_come_and_go(
    tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    train.train(tiny_recipe(), out=tmp_path / "r", report=print)
    folder, ended = tmp_path / "r" / "checkpoints", Event()
    state, tensors = checkpoint.load(folder / "step-00000004")

    def save_and_prune() -> None:
        for step in count(5):
            checkpoint_writer.save(folder, state.model_copy(update={"step": step}), tensors)
            checkpoint.prune(folder, 1)
            if ended.is_set():
                break

    training = Thread(target=save_and_prune)
    training.start()
    try:
        steps = [load_checkpoint(tmp_path / "r", device="cpu").state.step for _ in range(30)]
    finally:
        ended.set()
        training.join()
    assert steps == sorted(steps)
    assert len(set(steps)) > 3


def test_a_thousand_runs_are_listed_at_once(
    cli: Command, tiny_recipe: TinyRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("train", tiny_recipe(), "--out", "good").exit_code == 0
    good = Path("good").absolute()
    for number in range(1001):
        run = Path(f"runs/shakespeare-20261128-{number:06}")
        run.mkdir(parents=True)
        for name in ("recipe.toml", "environment.json", "checkpoints"):
            (run / name).symlink_to(good / name)
    began = process_time()  # other processes of the machine do not count
    result = cli("runs", "list")
    assert process_time() - began < 10  # a second, where nothing else runs
    assert len(result.stdout.splitlines()) == 1002


def names() -> list[str]:
    return [run.path.name for run in list_runs()]


def contents(path: Path) -> dict[Path, bytes | None] | bytes:
    """Everything below a folder with the contents of files; or the contents of a file."""
    if path.is_file():
        return path.read_bytes()
    return {
        p: p.read_bytes() if p.is_file() else None for p in [path, *path.rglob("*")] if p.exists()
    }


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_paths_that_are_not_utf_8_are_refused_before_anything_is_written(
    cli: Command, tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    trained = tmp_path / "run"
    assert cli("train", tiny_recipe(), "--out", trained).exit_code == 0
    odd = tmp_path / "caf\udce9"
    shutil.copytree(trained, odd)
    new, model = tmp_path / "new\udce9", tmp_path / "m\udce9.onnx"
    for command, path in (
        (["train", trained / "recipe.toml", "--out", new], new),
        (["sample", odd], odd / "checkpoints/step-00000004"),
        (["export", trained, "--out", model], model),
        (["sample", model], model),
    ):
        result = cli(*command)
        assert result.exit_code == 2
        assert f"error: {harmless(str(path))}: the path is not UTF-8" in result.stderr
    assert not new.exists()
    assert not model.exists()
