"""Runs that go on: longer than planned, with other options, or with another run's weights."""

import gc
import json
import shlex
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import PrivateAttr
from safetensors.torch import load_file
from typer.testing import Result

import gptkit
from gptkit.plugin import Callback, TrainState
from gptkit.runs import checkpoint
from gptkit.runs.changes import texts
from gptkit.runs.origin import Origin
from gptkit.training.snapshot import Snapshot

Command = Callable[..., Result]
TinyRecipe = Callable[..., Path]

PLAIN = [{"use": "grad-clip"}, {"use": "log", "every": 1, "sample_tokens": 0}]
"""Callbacks to which the number of steps makes no difference."""
STILL = ["--set", "train.optimizer.learning_rate=1e-30", "--set", "train.steps=1"]
"""So small a step that the weights stay as they are."""


@pytest.fixture
def trained(cli: Command, tiny_recipe: TinyRecipe, tmp_path: Path) -> Path:
    """A run of four steps called "r", below the working directory."""
    assert cli("train", tiny_recipe(callbacks=PLAIN), "--out", "r").exit_code == 0
    return tmp_path / "r"


def weights(run: Path) -> bytes:
    return (run / "checkpoints" / "last" / "model.safetensors").read_bytes()


def about(run: Path) -> Any:
    return json.loads((run / "environment.json").read_text())


def refused(result: Result, code: int = 2) -> str:
    assert (result.exit_code, result.stdout) == (code, "")
    return result.stderr


# resume --set


def test_a_run_that_is_resumed_for_longer_ends_as_one_that_was_planned_so(
    cli: Command, trained: Path, tmp_path: Path
) -> None:
    steps = ["--set", "train.steps=6"]
    assert cli("train", "tiny.toml", *steps, "--out", "whole").exit_code == 0
    result = cli("resume", "r", *steps, "--set", "callbacks.log.every=2")
    assert (result.exit_code, result.stdout) == (0, "r\n")
    assert "from step 4" in result.stderr
    assert weights(trained) == weights(tmp_path / "whole")
    recipe = tomllib.loads((trained / "recipe.toml").read_text())
    assert (recipe["train"]["steps"], recipe["callbacks"][1]["every"]) == (6, 2)
    changed = {"train.steps": 6, "callbacks.log.every": 2}
    assert about(trained)["changes"] == [{"step": 4, "set": changed}]
    shown = cli("runs", "show", "r").stdout
    assert "changed      at step 4: train.steps=6, callbacks.log.every=2\n" in shown


def test_a_complete_run_says_how_to_train_longer(cli: Command, trained: Path) -> None:
    hint = cli("resume", "r").stderr.splitlines()[-1]
    assert hint == "hint:  train longer: gptkit resume r --set train.steps=8"
    assert cli(*hint.partition("gptkit ")[2].split()).exit_code == 0
    assert (trained / "checkpoints" / "step-00000008").is_dir()


def test_another_batch_size_counts_from_the_next_step(cli: Command, trained: Path) -> None:
    assert cli("resume", "r", "--set", "train.steps=6", "--set", "train.batch_size=2").stdout
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    tokens = {record["step"]: record["tokens"] for record in records if "tokens" in record}
    assert [tokens[step] for step in (4, 5, 6)] == [4 * 64, 4 * 64 + 32, 4 * 64 + 64]


def test_another_batch_size_of_a_run_measured_in_tokens_asks_for_its_steps(
    cli: Command, tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    tokens = ["--set", "train.tokens=256"]
    assert cli("train", tiny_recipe(callbacks=PLAIN), *tokens, "--out", "r").exit_code == 0
    before = (tmp_path / "r" / "recipe.toml").read_text()
    size = ["--set", "train.batch_size=2"]
    assert "--set train.steps=N" in refused(cli("resume", "r", *size))
    assert (tmp_path / "r" / "recipe.toml").read_text() == before
    assert cli("resume", "r", *size, "--set", "train.steps=6").exit_code == 0


GROWING = """
    from gptkit.plugin import Callback

    class Growing(Callback):
        contract = 1

        def on_step_end(self, state):
            if state.step == 2:
                state.batch_size = 8
"""


def test_another_batch_size_wins_over_the_one_that_a_callback_had_set(
    cli: Command, tiny_recipe: TinyRecipe, tmp_path: Path, distribution: Callable[..., Path]
) -> None:
    distribution("acme-grow", GROWING, callbacks="growing = Growing")
    path = tiny_recipe(callbacks=[{"use": "growing"}, *PLAIN])
    assert cli("train", path, "--out", "r").exit_code == 0
    assert cli("resume", "r", "--set", "train.steps=5").exit_code == 0  # the checkpoint's: 8
    set_both = ["--set", "train.steps=6", "--set", "train.batch_size=2"]
    assert cli("resume", "r", *set_both).exit_code == 0
    records = [json.loads(line) for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    tokens = [record["tokens"] for record in records if "tokens" in record]
    sizes = [(b - a) // 16 for a, b in zip([0, *tokens], tokens, strict=False)]
    assert sizes == [4, 4, 8, 8, 8, 2]


@pytest.mark.parametrize(
    ("key", "value", "starts"),
    [("seed", 2, True), ("train.optimizer.learning_rate", 0.5, True),
     ("dataset.block_size", 8, False), ("model.n_layer", 2, False), ("model.dropout", 0.1, True)],
)  # fmt: skip
def test_what_a_resumed_run_cannot_change_is_refused_with_the_way_to_do_it(
    cli: Command, trained: Path, key: str, value: float, starts: bool
) -> None:
    before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file() and p.name != ".lock"}
    error = refused(cli("resume", "r", "--set", f"{key}={value}", "--set", "train.steps=5"))
    assert f"error: r: a resumed run keeps its {key}: " in error
    assert f", not {value}\n" in error
    assert {path: path.read_bytes() for path in before} == before
    line = error.splitlines()[-1].partition("gptkit ")[2]
    assert ("--from r" in line) == starts
    result = cli(*shlex.split(line), "--out", "other")
    assert (result.exit_code, result.stdout) == (0, "other\n")
    assert f"{key.rpartition('.')[2]} = {value}" in Path("other/recipe.toml").read_text()


def test_another_optimizer_is_refused_by_its_name_alone(cli: Command, trained: Path) -> None:
    error = refused(cli("resume", "r", "--set", "train.optimizer.use=muon"))
    assert error.startswith(
        "error: r: a resumed run keeps its train.optimizer.use: 'adamw', not 'muon'\nhint: "
    )


def test_a_step_that_is_past_is_refused_as_the_end(cli: Command, trained: Path) -> None:
    assert refused(cli("resume", "r", "--set", "train.steps=3")) == (
        "error: r: is at step 4 already, past train.steps=3\nhint:  set more: --set train.steps=8\n"
    )


def test_a_recipe_that_was_edited_by_hand_is_treated_alike(cli: Command, trained: Path) -> None:
    path = trained / "recipe.toml"
    written = path.read_text()
    path.write_text(written.replace("learning_rate = 0.001", "learning_rate = 0.5"))
    error = refused(cli("resume", "r"))
    assert error == (
        "error: r: a resumed run keeps its train.optimizer.learning_rate: 0.001, not 0.5\n"
        "hint:  start another run: gptkit train r/recipe.toml --from r\n"
    )
    path.write_text(written.replace("steps = 4", "steps = 6"))
    result = cli("resume", "r")
    assert result.exit_code == 0
    assert "changed: train.steps=6\n" in result.stderr
    assert about(trained)["changes"] == [{"step": 4, "set": {"train.steps": 6}}]
    result = cli("resume", "r", "--set", "train.tokens=512")
    assert "changed: train.steps unset, train.tokens=512\n" in result.stderr
    shown = cli("runs", "show", "r").stdout
    assert "changed      at step 6: train.steps unset, train.tokens=512\n" in shown


def test_a_run_without_a_checkpoint_is_started_from_its_recipe(cli: Command, trained: Path) -> None:
    expected = weights(trained)
    shutil.rmtree(trained / "checkpoints")
    assert "hint:  start it: gptkit resume r\n" in refused(cli("sample", "r"), code=1)
    result = cli("resume", "r")
    assert (result.exit_code, result.stdout) == (0, "r\n")
    assert "has no checkpoint yet" in result.stderr
    assert weights(trained) == expected


def test_a_run_without_a_checkpoint_takes_every_change_of_its_recipe(
    cli: Command, trained: Path, tmp_path: Path
) -> None:
    changed = ["--set", "seed=2", "--set", "train.optimizer.learning_rate=0.5"]
    assert cli("train", "tiny.toml", *changed, "--out", "whole").exit_code == 0
    shutil.rmtree(trained / "checkpoints")
    result = cli("resume", "r", *changed)
    assert (result.exit_code, result.stdout) == (0, "r\n")
    assert "changed: seed=2, train.optimizer.learning_rate=0.5\n" in result.stderr
    assert weights(trained) == weights(tmp_path / "whole")
    assert cli("resume", "r", "--set", "seed=3").exit_code == 2


def test_a_folder_that_a_kill_left_without_a_recipe_can_be_trained_into(
    cli: Command, trained: Path
) -> None:
    shutil.rmtree(trained / "checkpoints")
    for path in trained.iterdir():
        if path.is_file() and path.name not in (".lock", "environment.json"):
            path.unlink()
    (trained / ".recipe.toml.x.tmp").touch()
    shutil.rmtree(trained / "samples", ignore_errors=True)
    assert cli("train", "tiny.toml", "--out", "r").exit_code == 0
    (trained / "recipe.toml").unlink()
    error = refused(cli("train", "tiny.toml", "--out", "r"))
    assert "error: r: already exists\n" in error  # it has checkpoints


def test_values_become_texts_that_mean_the_same() -> None:
    values = {"a": 3, "b": "3", "c": 1e-3, "d": True, "e": [1, 2], "f": "x\n'y\"", "g": Path("p/q")}
    lines = [text.replace("=", " = ", 1) for text in texts(values)]
    assert tomllib.loads("\n".join(lines)) == values | {"g": "p/q"}


# train --from


def test_a_run_begins_with_the_weights_of_another(
    cli: Command, trained: Path, tmp_path: Path
) -> None:
    result = cli("train", "tiny.toml", "--from", "r", "--checkpoint", "2", *STILL, "--out", "b")
    assert result.exit_code == 0
    assert "from step 2 of r" in result.stderr
    source = trained / "checkpoints" / "step-00000002"
    begun = load_file(source / "model.safetensors")
    for name, tensor in load_file(tmp_path / "b/checkpoints/last/model.safetensors").items():
        assert tensor.equal(begun[name]), name
    digest = json.loads((source / "state.json").read_text())["sha256"]["model.safetensors"]
    said = {"run": str(trained), "step": 2, "weights": None, "sha256": digest}
    assert about(tmp_path / "b")["from"] == said
    assert f"from         step 2 of {trained}\n" in cli("runs", "show", "b").stdout


def test_a_run_begins_with_a_further_set_of_weights(
    cli: Command, tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    path = tiny_recipe(callbacks=[{"use": "ema", "decay": 0.5}])
    assert cli("train", path, "--out", "r").exit_code == 0
    run = gptkit.train(path, STILL[1::2], start="r", weights="ema", out="b", quiet=True)
    averaged = load_file(tmp_path / "r/checkpoints/last/model.ema.safetensors")
    for name, tensor in load_file(run.path / "checkpoints/last/model.safetensors").items():
        assert tensor.equal(averaged[name]), name
    assert about(run.path)["from"]["weights"] == "ema"
    error = refused(cli("train", path, "--from", "r", "--weights", "emu"))
    assert error.endswith("hint:  there are: ema\n")


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_with_them_again(
    cli: Command, trained: Path, tmp_path: Path
) -> None:
    assert cli("train", "tiny.toml", "--from", "r", "--out", "b").exit_code == 0
    expected = weights(tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "checkpoints")
    assert cli("resume", "b").exit_code == 0
    assert weights(tmp_path / "b") == expected
    shutil.rmtree(tmp_path / "b" / "checkpoints")
    shutil.rmtree(trained)
    assert cli("train", "tiny.toml", "--set", "seed=2", "--out", "r").exit_code == 0
    error = refused(cli("resume", "b"), code=1)
    assert "error: b: the weights that it began with, step 4 of " in error
    assert "hint:  begin with others: gptkit train b/recipe.toml --from RUN\n" in error


@pytest.mark.parametrize(
    ("override", "said"),
    [("model.n_layer=2", "its n_layer is 1, the recipe's 2"),
     ("dataset.block_size=32", "its block_size is 16, the recipe's 32"),
     ("dataset.path=other.txt", "its codec (char).vocabulary is ")],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_by_the_field(
    cli: Command, trained: Path, tmp_path: Path, override: str, said: str
) -> None:
    (tmp_path / "other.txt").write_text("abc" * 200)
    error = refused(cli("train", "tiny.toml", "--from", "r", "--set", override, "--out", "b"))
    assert f"error: --from r: {said}" in error
    assert not (tmp_path / "b").exists()


def test_from_is_needed_to_choose_a_checkpoint(cli: Command, tiny_recipe: TinyRecipe) -> None:
    assert "hint:  add --from RUN" in refused(cli("train", tiny_recipe(), "--checkpoint", "best"))
    assert "no such run folder" in refused(cli("train", tiny_recipe(), "--from", "nothing"))


def checkpoints_in_memory() -> list[object]:
    gc.collect()
    return [found for found in gc.get_objects() if type(found) in (Snapshot, Origin)]


class Held(Callback):
    """Counts the checkpoints in memory during training."""

    _found: list[int] = PrivateAttr(default_factory=list)

    def on_step_start(self, state: TrainState) -> None:
        self._found.append(len(checkpoints_in_memory()))


def test_what_training_began_with_takes_no_memory_until_its_end(trained: Path) -> None:
    others, held = checkpoints_in_memory(), Held()  # of other tests
    gptkit.resume("r", {"train.steps": 5}, callbacks=held, quiet=True)
    gptkit.train("tiny.toml", start="r", out="q", callbacks=held, quiet=True)
    assert held._found == [len(others)] * 5


# checkpoints/last, checkpoints/best


class Saved(Callback):
    """Notes which step folders there are after each save."""

    _found: list[list[int]] = PrivateAttr(default_factory=list)

    def on_save_end(self, state: TrainState) -> None:
        assert state.checkpoint
        folders = checkpoint.step_folders(state.checkpoint.parent)
        self._found.append([checkpoint.step_of(folder) for folder in folders])


def test_damaged_checkpoints_take_no_place_of_the_new_ones(
    cli: Command, tiny_recipe: TinyRecipe
) -> None:
    train = {"steps": 6, "save_every": 2, "eval_every": 6, "keep": 2}
    assert cli("train", tiny_recipe(callbacks=PLAIN, train=train), "--out", "r").exit_code == 0
    (Path("r") / "checkpoints" / "step-00000006" / "model.safetensors").write_bytes(b"")
    saved = Saved()
    gptkit.resume("r", {"train.save_every": 1, "train.keep": 1}, callbacks=saved, quiet=True)
    assert saved._found == [[5], [6]]


def test_links_point_to_the_newest_and_the_best_step(
    cli: Command, trained: Path, tmp_path: Path
) -> None:
    folder = trained / "checkpoints"
    assert (folder / "last").readlink() == Path("step-00000004")
    runs = json.loads(cli("runs", "list", "--json").stdout)
    assert runs == []  # "r" is not below runs/, and links are no runs
    (folder / ".best.tmp").symlink_to("step-00000004")  # as a kill leaves it
    assert cli("resume", "r", "--set", "train.steps=6", "--set", "train.keep=1").exit_code == 0
    assert (folder / "last").readlink() == Path("step-00000006")
    losses = {
        path.name: json.loads((path / "state.json").read_text())["val_loss"]
        for path in folder.glob("step-*")
    }
    assert (folder / "best").readlink() == Path(min(losses, key=losses.__getitem__))
    assert not list(folder.glob(".*"))
    trained.rename(tmp_path / "moved")
    assert (tmp_path / "moved/checkpoints/last/state.json").exists()


def test_where_links_cannot_be_made_training_goes_on(
    cli: Command, tiny_recipe: TinyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert cli("train", tiny_recipe(), "--out", "r").exit_code == 0
    names = {path.name for path in (tmp_path / "r" / "checkpoints").iterdir()}
    assert names == {"step-00000002", "step-00000004"}
