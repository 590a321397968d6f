import json
import math
import os
import re
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

import gptkit as gptkit_package
from gptkit import __version__
from gptkit.errors import UsageError
from gptkit.recipe import build, registry
from tests.support import RUNNING

Command = Callable[..., Result]
TinyRecipe = Callable[..., Path]
SHARED = ["--tokens", "40", "--prompt", "Shall I "]


@pytest.fixture
def trained(cli: Command, tiny_recipe: TinyRecipe, tmp_path: Path) -> Path:
    """A run folder called "r", below the working directory."""
    assert cli("train", tiny_recipe(), "--out", "r").exit_code == 0
    return tmp_path / "r"


# Real processes: what goes where.


def test_train_prints_its_folder_on_stdout_and_progress_on_stderr(
    gptkit: Callable[..., Any], tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    result = gptkit("train", tiny_recipe(), "--set", "train.steps=2")
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"runs/tiny-\d{8}-\d{6}\n", result.stdout)
    assert "parameters on cpu in float32" in result.stderr
    assert "val loss" in result.stderr
    assert "Traceback" not in result.stderr
    run = tmp_path / result.stdout.strip()
    assert {path.name for path in run.iterdir()} >= {
        "recipe.toml", "environment.json", "metrics.jsonl", "samples", "checkpoints"
    }  # fmt: skip
    assert tomllib.loads((run / "recipe.toml").read_text())["train"]["steps"] == 2
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["best", "last", "step-00000002"]


def test_a_mistake_is_two_lines_on_stderr_and_exit_code_2(
    gptkit: Callable[..., Any], tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    path = tiny_recipe(callbacks=[{"use": "grad-clip", "max_norm": -1}])
    result = gptkit("train", path)
    assert (result.returncode, result.stdout) == (2, "")
    place = "callbacks[0] (grad-clip).max_norm"
    assert result.stderr == (
        f"error: {path}: {place}: should be greater than 0, got -1\n"
        "hint:  gptkit plugins show grad-clip lists its options\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


def test_a_reader_that_leaves_ends_sampling_quietly(trained: Path) -> None:
    command = [sys.executable, "-m", "gptkit", "sample", str(trained), "--tokens", "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert len(process.stdout.read(20)) == 20
        process.stdout.close()
        assert process.stderr.read().decode() == RUNNING
        assert process.wait(60) != 0


# The rest inside this process.


def test_version_and_help(cli: Command) -> None:
    assert cli("--version").stdout == f"{__version__}\n"
    for arguments in (["--help"], ["-h"], ["train", "--help"], ["plugins", "-h"], ["runs", "-h"]):
        result = cli(*arguments)
        assert (result.exit_code, result.stderr) == (0, "")
        assert "Usage" in result.stdout or "help" in result.stdout
    assert set(re.findall(r"^│ (\w+) ", cli("--help").stdout, re.MULTILINE)) >= {
        "train", "resume", "sample", "eval", "check", "plugins", "runs"
    }  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["train"], ["train", "a.toml", "--nope"], ["plugins"],
     ["sample", "--tokens", "x"], ["sample", "--samples", "0"], []],
    ids=" ".join,
)  # fmt: skip
def test_bad_usage_is_exit_code_2(cli: Command, arguments: list[str]) -> None:
    assert cli(*arguments).exit_code == 2


def test_set_reaches_the_run(cli: Command, tiny_recipe: TinyRecipe, tmp_path: Path) -> None:
    overrides = ["--set", "train.steps=3", "--set", "callbacks.grad-clip.max_norm=0.5"]
    result = cli("train", tiny_recipe(), "--out", "deep/er/r", *overrides)
    assert (result.exit_code, result.stdout) == (0, "deep/er/r\n")
    recipe = tomllib.loads((tmp_path / "deep/er/r/recipe.toml").read_text())
    assert recipe["train"]["steps"] == 3
    assert recipe["callbacks"][1] == {"use": "grad-clip", "on_error": "stop", "max_norm": 0.5}


def test_a_run_folder_is_never_overwritten(
    cli: Command, tiny_recipe: TinyRecipe, trained: Path
) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    result = cli("train", tiny_recipe(), "--out", "r")
    assert result.exit_code == 2
    assert "r: already exists" in result.stderr
    assert "gptkit resume r" in result.stderr
    assert {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()} == before


def test_a_complete_run_has_nothing_to_resume(cli: Command, trained: Path) -> None:
    result = cli("resume", "r")
    assert (result.exit_code, result.stdout) == (0, "r\n")
    assert "complete at step 4" in result.stderr


def test_divergence_is_exit_code_3(cli: Command, tiny_recipe: TinyRecipe, tmp_path: Path) -> None:
    path = tiny_recipe(train={"optimizer": {"learning_rate": 1e30}, "eval_every": 1}, callbacks=[])
    result = cli("train", path, "--out", "r")
    assert result.exit_code == 3
    assert "error: step 1: the validation loss is not finite\n" in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "r" / "checkpoints").exists()  # nothing was good


# check


def test_check_prints_the_complete_recipe(
    cli: Command, tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    path = tiny_recipe()
    result = cli("check", path, "--set", "seed=9")
    opens = ["opens in gguf as gpt2", "opens in hf as GPT2LMHeadModel", "ok"]
    assert (result.exit_code, result.stderr.splitlines()) == (0, [f"{path}: {o}" for o in opens])
    written = tmp_path / "complete.toml"
    written.write_text(result.stdout)
    assert build.read(written).seed == 9
    assert cli("check", written).stdout == result.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["complete.toml", "tiny.toml"]


def test_check_lists_every_problem(cli: Command, tiny_recipe: TinyRecipe) -> None:
    path = tiny_recipe(dataset={"use": "char-txt"}, callbacks=[{"use": "log", "evry": 1}])
    result = cli("check", path, "--set", "train.stpes=3", "--set", "model.n_head=0")
    assert (result.exit_code, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    assert lines[:4] == [
        "error: --set model.n_head: should be greater than 0, got 0",
        'error: --set train.stpes: unknown key; did you mean "steps"?',
        f'error: {path}: dataset.use: no dataset named "char-txt"',
        f'error: {path}: callbacks[0] (log).evry: unknown key; did you mean "every"?',
    ]
    assert lines[4].startswith("hint:  installed: ")
    assert lines[4].endswith('did you mean "char-text"?')
    assert lines[5:] == ["hint:  gptkit plugins show log lists its options"]


def test_check_warns_of_a_path_at_which_there_is_nothing(
    cli: Command, tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    result = cli("check", tiny_recipe(dataset={"path": "nope.txt"}))
    assert result.exit_code == 0
    assert f": dataset.path: {tmp_path}/nope.txt: no such file or folder\n" in result.stderr
    error = cli("check", tiny_recipe(), "--set", "dataset.path=caf\udce9").stderr
    assert error.startswith("error: --set dataset.path: is not UTF-8\n")


# plugins


def test_plugins_list_names_them_with_their_distributions(cli: Command) -> None:
    rows = json.loads(cli("plugins", "list", "--json").stdout)
    expected = {
        "kind": "callback", "name": "log", "distribution": "gptkit-log", "version": __version__
    }  # fmt: skip
    assert expected in rows
    table = cli("plugins", "list").stdout.splitlines()
    assert [line.split()[:3] for line in table[1:]] == [
        [row["kind"], row["name"], row["distribution"]] for row in rows
    ]


@pytest.mark.parametrize("name", ["char-text", "lr-decay", "grad-clip", "log", "char"])
def test_plugins_show_explains_every_option(cli: Command, name: str) -> None:
    result = cli("plugins", "show", name)
    assert (result.exit_code, result.stderr) == (0, "")
    shown = " ".join(result.stdout.split())
    (entry,) = registry.find_any(name)
    assert f"{entry.kind} {name} ({entry.origin})" in shown
    for option, field in registry.load(entry).model_fields.items():
        assert f"{option} " in shown
        assert field.description, f"{name}.{option} has no help"
        assert field.description.split()[0] in shown


def test_plugins_show_keeps_the_docstrings_lines_straight(cli: Command) -> None:
    assert "\nPut it last in the recipe" in cli("plugins", "show", "log").stdout


def test_an_unknown_plugin_comes_with_the_closest(cli: Command) -> None:
    for command in ("show", "check"):
        result = cli("plugins", command, "gradclip")
        assert (result.exit_code, result.stdout) == (2, "")
        assert 'error: no plugin named "gradclip"' in result.stderr
        assert 'did you mean "grad-clip"?' in result.stderr


def test_plugins_check_says_ok(cli: Command) -> None:
    result = cli("plugins", "check")
    assert result.exit_code == 0
    assert all(line.endswith(": ok") for line in result.stdout.splitlines())
    assert cli("plugins", "check", "log").stdout == f"callback log (gptkit-log {__version__}): ok\n"


# runs


def test_no_runs_are_an_empty_list(cli: Command) -> None:
    assert json.loads(cli("runs", "list", "--json").stdout) == []
    for command in (["runs", "show"], ["resume"], ["sample"], ["eval"]):
        result = cli(*command)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "error: no run folders under runs/" in result.stderr
    result = cli("runs", "show", "elsewhere")
    assert result.exit_code == 2
    assert "error: elsewhere: no such run folder" in result.stderr


def test_the_newest_run_is_meant_where_none_is_named(
    cli: Command, tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    for i, name in enumerate(("b", "c", "a")):
        cli("train", tiny_recipe(train={"steps": i + 1}), "--out", f"runs/{name}")
        os.utime(tmp_path / "runs" / name / "recipe.toml", ns=(i, i * 10**9))
    rows = json.loads(cli("runs", "list", "--json").stdout)
    assert [(row["run"], row["step"]) for row in rows] == [
        ("runs/b", 1), ("runs/c", 2), ("runs/a", 3)
    ]  # fmt: skip
    assert set(rows[0]) == {"run", "step", "val_loss", "best_val_loss", "dataset"}
    shown = cli("runs", "list").stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["run", "runs/b", "runs/c", "runs/a"]
    assert json.loads(cli("eval", "--json").stdout)["step"] == 3
    assert json.loads(cli("runs", "show", "--json").stdout)["run"] == "runs/a"
    assert cli("resume").stdout == "runs/a\n"


def test_runs_show_tells_everything(cli: Command, trained: Path) -> None:
    found = json.loads(cli("runs", "show", "r", "--json").stdout)
    assert found["step"] == 4
    assert [row["checkpoint"] for row in found["checkpoints"]] == ["step-00000002", "step-00000004"]
    assert found["best_val_loss"] == min(row["val_loss"] for row in found["checkpoints"])
    assert tomllib.loads(found["recipe"])["dataset"]["use"] == "char-text"
    environment = found["environment"]
    assert environment["device"] == "cpu"
    assert environment["versions"]["gptkit"] == __version__
    assert "gptkit-log" in str(environment["plugins"])
    shown = cli("runs", "show", "r").stdout
    for expected in ("step-00000004", environment["data_sha256"], 'use = "char-text"'):
        assert expected in shown


def test_runs_compare_shows_losses_and_what_differs(
    cli: Command, tiny_recipe: TinyRecipe, trained: Path
) -> None:
    changes = [
        "--set",
        "train.optimizer.learning_rate=3e-5",
        "--set",
        "callbacks.grad-clip.max_norm=2.0",
    ]
    cli("train", tiny_recipe(model={"n_inner": 8}), "--out", "s", *changes)
    rows = json.loads(cli("runs", "compare", "r", "s", "--json").stdout)
    differing = ("train.optimizer.learning_rate", "callbacks.grad-clip.max_norm", "model.n_inner")
    assert [tuple(row[key] for key in differing) for row in rows] == [(1e-3, 1, None), (3e-5, 2, 8)]
    assert set(rows[0]) - set(differing) == {
        "run", "step", "val_loss", "best_val_loss", "dataset"
    }  # fmt: skip
    Path("s").rename("[s]")
    shown = cli("runs", "compare", "r", "[s]").stdout.splitlines()
    assert shown[0].split() == ["r", "[s]"]
    (rates,) = [
        line.split()[1:] for line in shown if line.startswith("train.optimizer.learning_rate")
    ]
    assert [float(rate) for rate in rates] == [1e-3, 3e-5]
    assert cli("runs", "compare", "r", "nope").exit_code == 2


# eval


def test_eval_measures_the_whole_validation_split(cli: Command, trained: Path) -> None:
    result = cli("eval", "r", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert set(found) == {
        "loss", "perplexity", "bits_per_token", "bits_per_byte", "tokens", "step",
    }  # fmt: skip
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["bits_per_token"] == pytest.approx(found["loss"] / math.log(2))
    data = build.build(build.read(trained / "recipe.toml")).dataset.load()
    assert found["tokens"] == data.val.stop - data.val.start - 1  # all but the first are targets
    assert found["step"] == 4
    assert json.loads(cli("eval", "r", "--json", "--checkpoint", "2").stdout)["step"] == 2
    text = cli("eval", "r").stdout
    assert f"{found['loss']:.4f} nats per token" in text
    assert f"{found['tokens']:,}" in text


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(
    cli: Command, trained: Path
) -> None:
    for command in ("eval", "sample"):
        for which in ("3", "newest"):
            result = cli(command, "r", "--checkpoint", which)
            assert result.exit_code in (1, 2)
            assert (
                f"error: r: no checkpoint {which}\nhint:  one of last, best, 2, 4" in result.stderr
            )


@pytest.mark.parametrize("name", ["last", "best", "step-00000002"])
def test_a_checkpoint_given_as_a_run_is_answered_with_the_line_to_paste(
    cli: Command, trained: Path, name: str
) -> None:
    path, which = f"r/checkpoints/{name}", name.removeprefix("step-0000000")
    for command in ("eval", "sample"):
        result = cli(command, path)
        assert result.stderr == (
            f"error: {path}: a checkpoint, not a run folder\n"
            f"hint:  gptkit {command} r --checkpoint {which}\n"
        )
    result = cli("train", trained / "recipe.toml", "--from", path, "--out", "new")
    assert result.stderr.endswith(f" --from r --checkpoint {which} --out new\n")
    with pytest.raises(UsageError, match="a checkpoint, not a run folder"):
        gptkit_package.load(path)


def test_a_path_inside_a_run_folder_is_answered_with_the_run(cli: Command, trained: Path) -> None:
    for path in ("r/recipe.toml", "r/checkpoints", "r/checkpoints/last/state.json"):
        assert cli("resume", path).stderr == (
            f"error: {path}: is inside a run folder\nhint:  give the run folder: r\n"
        )


def test_best_is_not_offered_where_there_is_none(cli: Command, trained: Path) -> None:
    for path in trained.glob("checkpoints/step-*/state.json"):
        path.write_text("damaged")
    result = cli("eval", "r", "--checkpoint", "best")
    assert result.stderr == "error: r: no checkpoint best\nhint:  one of last, 2, 4\n"


# sample


def test_the_same_seed_draws_the_same_text(cli: Command, trained: Path) -> None:
    first = cli("sample", "r", *SHARED)
    assert (first.exit_code, first.stderr) == (0, RUNNING)
    assert first.stdout.startswith("Shall I ")
    assert len(first.stdout) == len("Shall I ") + 40 + 1
    assert first.stdout.endswith("\n")
    assert cli("sample", "r", *SHARED, "--seed", "0").stdout == first.stdout
    assert cli("sample", "r", *SHARED, "--seed", "1").stdout != first.stdout
    assert cli("sample", "r", *SHARED, "--checkpoint", "last").stdout == first.stdout


def test_the_likeliest_token_needs_no_seed(cli: Command, trained: Path) -> None:
    ways = (["--temperature", "0"], ["--top-k", "1"], ["--top-p", "1e-9"])
    texts = {
        cli("sample", "r", *SHARED, *way, "--seed", seed).stdout for way in ways for seed in (0, 7)
    }
    assert len(texts) == 1


def test_sampling_goes_on_past_block_size(cli: Command, trained: Path) -> None:
    prompt = "Shall I compare thee to a summer's day?"  # already longer than 16
    result = cli("sample", "r", "--tokens", "100", "--prompt", prompt)
    assert result.stdout.startswith(prompt)
    assert len(result.stdout) == len(prompt) + 101
    shorter = cli("sample", "r", "--tokens", "30", "--prompt", prompt).stdout
    assert result.stdout.startswith(shorter.removesuffix("\n"))


def test_without_a_prompt_something_is_drawn(cli: Command, trained: Path) -> None:
    assert len(cli("sample", "r", "--tokens", "5").stdout) == 1 + 5 + 1


def test_several_samples_are_ruled_off(cli: Command, trained: Path) -> None:
    together = cli("sample", "r", *SHARED, "--samples", "3").stdout
    texts = together.removesuffix("\n").split("\n----------\n")
    assert len(set(texts)) == 3
    assert all(text.startswith("Shall I ") and len(text) == 48 for text in texts)
    assert cli("sample", "r", *SHARED, "--samples", "3").stdout == together


def test_out_writes_a_file_and_nothing_to_stdout(
    cli: Command, trained: Path, tmp_path: Path
) -> None:
    for more in ([], ["--samples", "3"]):
        printed = cli("sample", "r", *SHARED, *more).stdout
        result = cli("sample", "r", *SHARED, *more, "--out", "s.txt")
        assert (result.exit_code, result.stdout) == (0, "")
        assert (tmp_path / "s.txt").read_text() == printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r", "s.txt", "tiny.toml"]


def test_out_writes_into_a_pipe_and_leaves_it_one(
    cli: Command, trained: Path, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert cli("sample", "r", *SHARED, "--out", "pipe").exit_code == 0
        assert stat.S_ISFIFO(pipe.stat().st_mode), "it was replaced by a plain file"
        assert os.read(reader, 1000).decode().startswith("Shall I ")
    finally:
        os.close(reader)


@pytest.mark.parametrize(
    ("place", "code", "fault"),
    [
        (".", 2, "is a folder"),
        ("r", 2, "is a folder"),
        ("r/recipe.toml/s.txt", 1, "cannot be written: "),
        ("/proc/s.txt", 1, "cannot be written: "),
    ],
)
def test_out_that_cannot_be_written_is_refused(
    cli: Command, trained: Path, place: str, code: int, fault: str
) -> None:
    result = cli("sample", "r", *SHARED, "--out", place)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.removeprefix(RUNNING).startswith(f"error: {place}: {fault}")
    assert "--out FILE" in result.stderr


def test_out_may_be_in_a_new_folder(cli: Command, trained: Path, tmp_path: Path) -> None:
    assert cli("sample", "r", *SHARED, "--out", "new/folder/s.txt").exit_code == 0
    assert (tmp_path / "new/folder/s.txt").read_text().startswith("Shall I ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is full")
@pytest.mark.parametrize("options", [[], ["--ids"], ["--samples", "2"]], ids=str)
def test_a_full_disk_behind_stdout(
    options: list[str], trained: Path, gptkit: Callable[..., Any]
) -> None:
    streams = {"capture_output": False, "stderr": subprocess.PIPE}
    with Path("/dev/full").open("wb") as full:
        buffered = {"PYTHONUNBUFFERED": ""}  # as it is for people
        result = gptkit("sample", "r", *options, env=buffered, stdout=full, **streams)
    assert result.returncode == 1
    assert result.stderr.removeprefix(RUNNING) == (
        "error: standard output: cannot be written: No space left on device\n"
        "hint:  make room on its disk, or send it elsewhere\n"
    )


def test_what_is_exported_can_only_be_sampled(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    (tmp_path / "page/model.onnx").touch()
    for command in ("eval", "resume", "probe", "export"):
        result = cli(command, "page/model.onnx")
        assert (result.exit_code, result.stdout) == (2, "")
        if command != "export":
            assert "page/model.onnx: an exported model can only be sampled" in result.stderr
    result = cli("sample", "page")
    assert result.exit_code == 2
    assert (
        "page: not a run folder or a bundle\nhint:  gptkit sample page/model.onnx" in result.stderr
    )


def test_a_prompt_with_unknown_characters_lists_them(cli: Command, trained: Path) -> None:
    result = cli("sample", "r", "--prompt", "Straße 7")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "error: prompt: the model never saw '7', 'ß'" in result.stderr
    assert "hint:  use only the characters that it knows: " in result.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("--top-k", "-1"), ("--top-p", "0"), ("--top-p", "1.5"), ("--top-p", "nan"), ("--seed", "-1"),
     ("--seed", str(2**63)), ("--temperature", "nan"), ("--tokens", "0")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(
    cli: Command, trained: Path, option: str, value: str
) -> None:
    result = cli("sample", "r", option, value)
    assert (result.exit_code, result.stdout) == (2, "")
    assert option.strip("-").replace("-", "_") in result.stderr.replace("-", "_")


# devices


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_where_there_is_none_is_refused(
    cli: Command, tiny_recipe: TinyRecipe, trained: Path, tmp_path: Path
) -> None:
    for command in (
        ["sample", "r", "--device", "cuda"],
        ["eval", "r", "--device", "cuda:1"],
        ["train", tiny_recipe(), "--set", "train.device=cuda", "--out", "gpu"],
    ):
        result = cli(*command)
        assert (result.exit_code, result.stdout) == (2, "")
        assert re.search(r'error: device "cuda(:1)?" is not available: ', result.stderr)
        assert 'hint:  use device "auto"' in result.stderr
    assert not (tmp_path / "gpu").exists()


def test_a_device_that_nobody_knows_is_refused(cli: Command, trained: Path) -> None:
    result = cli("sample", "r", "--device", "abacus")
    assert result.exit_code == 2
    assert 'error: no device named "abacus"' in result.stderr
    assert cli("sample", "r", "--device", "meta").exit_code == 2


def test_doctor_runs_a_model_and_says_what_is_missing(cli: Command) -> None:
    found = json.loads(cli("doctor", "--json").stdout)
    assert found["session on cpu"] == "works, CPUExecutionProvider"
    assert found["torch"].startswith(torch.__version__)
    if not torch.cuda.is_available():
        assert found["session on cuda"].startswith("fails: CUDA is not available: ")
    shown = cli("doctor")
    assert (shown.exit_code, "session on cpu" in shown.stdout) == (0, True)


@pytest.mark.parametrize(
    ("option", "value", "fault"),
    [
        ("--tokens", "0", "should be at least 1, got '0'"),
        ("--samples", "many", "should be a whole number, got 'many'"),
        ("--temperature", "warm", "should be a number, such as 0.5, got 'warm'"),
    ],
)
def test_a_wrong_value_of_an_option_is_told_in_plain_words(
    cli: Command, option: str, value: str, fault: str
) -> None:
    result = cli("sample", option, value)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0].startswith("error: gptkit sample: invalid value for ")
    assert result.stderr.splitlines()[0].endswith(f": {fault}")


def test_a_usage_line_names_an_optional_run_once(cli: Command) -> None:
    assert " sample [OPTIONS] [RUN] " in cli("sample", "--help").stdout
    assert "--tokens,--max-new-tokens " in cli("sample", "--help").stdout
