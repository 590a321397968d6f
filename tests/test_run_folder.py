"""Run folders that are moved, deleted or half made; which run is the newest."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from gptkit.errors import GptkitError, RunError
from gptkit.plugin import Callback, TrainState
from gptkit.runs import checkpoint, train
from gptkit.runs.run_folder import RunFolder, list_runs
from gptkit.runs.train import Caller

Command = Callable[..., Result]
TinyRecipe = Callable[..., Path]


class AtStep(Callback):
    """Does something to the run folder during a step."""

    contract = 1

    step: int
    act: Callable[[Path], object]

    def on_step_start(self, state: TrainState) -> None:
        if state.step + 1 == self.step and state.run_dir:
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
    class Refusing(Callback):
        contract = 1

        def on_fit_start(self, state: TrainState) -> None:
            raise AssertionError("it should not come so far")

    for folder in made_before:
        (tmp_path / folder).mkdir(parents=True)
    before = contents(tmp_path / "a")
    recipe = tiny_recipe(model={"n_layer": 2, "n_embd": 16}, dataset={"block_size": 8})
    train.train(tiny_recipe(), out=tmp_path / "other", report=print)
    with pytest.raises(GptkitError, match="n_layer"):  # as late as possible: the model is made
        train.train(
            tiny_recipe(model={"n_layer": 2}),
            out=tmp_path / "a/b/r",
            start=tmp_path / "other",
            report=print,
            caller=Caller(Refusing()),
        )
    assert contents(tmp_path / "a") == before
    assert recipe.exists()


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


def names() -> list[str]:
    return [run.path.name for run in list_runs()]


def contents(path: Path) -> dict[Path, bytes | None] | bytes:
    """Everything below a folder with the contents of files; or the contents of a file."""
    if path.is_file():
        return path.read_bytes()
    return {
        p: p.read_bytes() if p.is_file() else None for p in [path, *path.rglob("*")] if p.exists()
    }
