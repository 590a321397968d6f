"""What people type: habits of other tools, mistakes, the tab key, commands of plugins."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Command = Callable[..., Result]
Install = Callable[..., Path]
TinyRecipe = Callable[..., Path]

LINES = {
    "train r.toml --train.steps 5": "train r.toml --set train.steps=5",
    "train r.toml --train.steps=5 --out x": "train r.toml --set train.steps=5 --out x",
    "train r.toml train.steps=5 model.n_layer=2": (
        "train r.toml --set train.steps=5 --set model.n_layer=2"
    ),
    "resume train.steps=20": "resume --set train.steps=20",
    "resume r --callbacks.log.every=2": "resume r --set callbacks.log.every=2",
    "train --config r.toml": "train r.toml",
    "check --config=r.toml --seed 3": "check r.toml --set seed=3",
    "train r.toml --max_iters=9 --learning-rate 1e-3 --n_layer=4": (
        "train r.toml --set train.steps=9 --set train.optimizer.learning_rate=1e-3 "
        "--set model.n_layer=4"
    ),
    "run r.toml --seed 3": "train r.toml --set seed=3",
    "run list": "runs list",
    "train r.toml seed=3": "train r.toml --set seed=3",
    "train r.toml callbacks.acme:log.every=3": "train r.toml --set callbacks.acme:log.every=3",
    "train --compile r.toml": "train --set train.compile=true r.toml",
    "train r.toml --compile false": "train r.toml --set train.compile=false",
    "train r.toml --shard": "train r.toml --set train.shard=true",
    "train r.toml --lr": "train --help",
    "train r.toml --optimizer muon": "train r.toml --set train.optimizer.use=muon",
    "sample -n3 r --promt to": "sample -n3 r --prompt to",
    "sample --max_new_tokens 5": "sample --tokens 5",
    "sample --promt 'to be'": "sample --prompt 'to be'",
    "trian r.toml --set seed=1": "train r.toml --set seed=1",
    "generate --seed 1": "sample --seed 1",
    "plugins lst --json": "plugins list --json",
    "r.toml --out x": "train r.toml --out x",
    "sonnets.onnx --seed 1": "sample sonnets.onnx --seed 1",
    "train r.toml --set": "train --help",
    "sample --checkpoint": "sample --help",
    "sample r --top-k": "sample --help",
    "eval --json=true": "eval --json",
    "eval --json=3": "eval --help",
    "--version=3": "--help",
    "plugins --nonsense": "plugins --help",
    "train r.toml --compile=True --bias False": (
        "train r.toml --set train.compile=true --set model.bias=false"
    ),
    "train r.toml --max_iters=5 --wandb_log": "train --help",
    "train r.toml --dropout": "train --help",
    "train r.toml --grad_clip=1 --max_iters=5": "train --help",
    "train r.toml --train.stepz 5": "train --help",
    "train r.toml more.toml --max_iters=5": "train --help",
    "train --max_iters=5": "train RECIPE --set train.steps=5",
    "train r.toml --per_device_train_batch_size 8": "train r.toml --set train.micro_batch_size=8",
    "train r.toml --init_from=resume --max_iters=9": "resume RUN --set train.steps=9",
    "train r.toml --init_from=gpt2": "train --help",
    "train r.toml --set train.steps 5": "train r.toml --set train.steps=5",
    "resume --set train.steps 5": "resume --set train.steps=5",
    "train r.toml --set steps=5": "train r.toml --set train.steps=5",
    "trian r.toml --max_iters=5": "train r.toml --set train.steps=5",
    "trian r.toml --nonsense": "train --help",
    "sample --ckpt best": "sample --checkpoint best",
    "sample --ckpt out/ckpt.pt": "sample --help",
    "sample --do_sample r": "sample --help",
    "train r.toml --always_save_checkpoint=False": "train --help",
    "sample --do_sample=False": "sample --temperature 0",
    "sample --start FILE:x": "sample --prompt - < x",
    "sample --run r --num-return-sequences 2": "sample r --samples 2",
    "export --format onnx": "export --to onnx",
    "help train": "train --help",
    "nonsense": "--help",
    "plugins nonsense": "plugins --help",
    "sample --nonsense 1": "sample --help",
    "export --sed dtype=int8": "export --set dtype=int8",
    "export --train.steps 5": "export --help",
    "train": "train --help",
    "--nonsense": "--help",
}
"""What is typed, and the line that the hint has."""

CHAT = """
    import typer

    app = typer.Typer()

    @app.command()
    def chat(name: str, loud: bool = False) -> None:
        print(f"{name}!" if loud else name)
"""


@pytest.mark.parametrize("typed", LINES)
def test_a_mistake_is_answered_with_the_line_to_paste(cli: Command, typed: str) -> None:
    result = cli(*shlex.split(typed))
    assert (result.exit_code, result.stdout) == (2, "")
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint == f"hint:  gptkit {LINES[typed]}"


def test_the_line_of_the_hint_works(cli: Command, tiny_recipe: TinyRecipe) -> None:
    typed = f"check --config {tiny_recipe()} --train.steps 7 --callbacks.log.every=3"
    hint = cli(*typed.split()).stderr.splitlines()[-1]
    result = cli(*shlex.split(hint.removeprefix("hint:  gptkit ")))
    recipe = tomllib.loads(result.stdout)
    assert recipe["train"]["steps"] == 7
    assert recipe["callbacks"][-1]["every"] == 3


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("resume r --set", "gptkit resume: option '--set' requires an argument"),
        ("train r.toml lr.x=3 --out", "gptkit train: option '--out' requires an argument"),
        ("runs list --json=1", "gptkit runs list: option '--json' does not take a value"),
    ],
)
def test_an_option_without_its_value(cli: Command, typed: str, said: str) -> None:
    result = cli(*typed.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {said}\nhint:  gptkit {typed.split()[0]} ")


def test_a_value_that_looks_like_a_field_stays_where_it_is(cli: Command) -> None:
    result = cli("train", "r.toml", "--out", "a.b=c", "--steps", "3")
    assert result.stderr.endswith("hint:  gptkit train r.toml --out a.b=c --set train.steps=3\n")


def test_two_lengths_of_a_training_conflict_as_in_a_file(
    cli: Command, tiny_recipe: TinyRecipe
) -> None:
    lengths = ["--set", "train.epochs=1", "--set", "train.tokens=100"]
    result = cli("check", tiny_recipe(), *lengths)
    assert result.exit_code == 2
    assert "one of steps, tokens, epochs should be set, got tokens and epochs" in result.stderr
    assert cli("check", tiny_recipe(), *lengths[:2]).exit_code == 0


def test_the_tab_key_in_a_real_bash(
    gptkit: Callable[..., subprocess.CompletedProcess[str]],
    cli: Command,
    tiny_recipe: TinyRecipe,
    tmp_path: Path,
) -> None:
    program, bash = Path(sys.executable).with_name("gptkit"), shutil.which("bash")
    if not (program.exists() and bash):
        pytest.skip("no bash, or no program gptkit beside this Python")
    assert cli("train", tiny_recipe(), "--set", "train.steps=1", "--out", "runs/a").exit_code == 0
    (tmp_path / "m.onnx").touch()
    expected = {
        "gptkit re": ["resume"],
        "gptkit train ": ["tiny.toml"],
        f"gptkit train {tmp_path}/ti": [f"{tmp_path}/tiny.toml"],
        "gptkit resume ": ["runs/a"],
        "gptkit runs compare runs/": ["runs/a"],
        "gptkit sample ": ["runs/a", "m.onnx"],
        "gptkit plugins show grad": ["grad-clip"],
        "gptkit export --chec": ["--checkpoint"],
    }
    script = 'eval "$(gptkit --show-completion bash)"\n'
    for typed in expected:
        words = typed.split(" ")
        script += f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; COMPREPLY=()\n"
        script += '_gptkit_completion gptkit; echo "${COMPREPLY[*]}"\n'
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [bash, "--norc", "-c", script],
        cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert [line.split() for line in done.stdout.splitlines()] == list(expected.values())


# Commands of plugins.


def test_a_command_of_a_plugin_is_listed_without_being_imported(
    cli: Command, distribution: Install
) -> None:
    site = distribution("acme-talk", "raise SystemExit('imported')", commands="talk = app")
    metadata = next(site.glob("*.dist-info")) / "METADATA"
    metadata.write_text(metadata.read_text() + "Summary: Talk to a model.\n")
    listed = cli("--help")
    assert listed.exit_code == 0
    assert re.search(r"^│ talk +Talk to a model\. +│$", listed.stdout, re.MULTILINE)
    assert "acme_talk" not in sys.modules


def test_a_command_of_a_plugin_runs_with_its_arguments(cli: Command, distribution: Install) -> None:
    distribution("acme-talk", CHAT, commands="talk = app")
    assert cli("talk", "hello", "--loud").stdout == "hello!\n"
    described = cli("talk", "--help").stdout
    assert "--loud" in described
    assert "completion" not in described
    result = cli("talk", "hello", "--lout")
    assert result.exit_code == 2
    assert result.stderr.endswith("hint:  gptkit talk hello --loud\n")
    assert cli("talk").stderr.endswith("hint:  gptkit talk --help\n")
    assert cli("talk", "hello", "--loud=3").stderr.endswith("hint:  gptkit talk --help\n")
    assert cli("tlak", "hello").stderr.endswith("hint:  gptkit talk hello\n")


def test_a_broken_command_is_an_error_that_names_it_and_harms_no_other(
    cli: Command, distribution: Install
) -> None:
    distribution("acme-talk", "import module_that_nobody_has", commands="talk = app")
    result = cli("talk", "hello")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "error: command talk (acme-talk 1.2) cannot be imported" in result.stderr
    assert "module_that_nobody_has" in result.stderr
    assert cli("plugins", "list").exit_code == 0


def test_a_command_of_the_core_always_wins(
    cli: Command, distribution: Install, tiny_recipe: TinyRecipe
) -> None:
    distribution("acme-talk", CHAT, commands="check = app")
    assert cli("check", tiny_recipe()).stderr.endswith("tiny.toml: ok\n")
    assert len(re.findall(r"^│ check ", cli("--help").stdout, re.MULTILINE)) == 1


def test_two_commands_of_one_name_are_told_apart(cli: Command, distribution: Install) -> None:
    distribution("acme-talk", CHAT, commands="talk = app")
    distribution("other-talk", CHAT.replace("name}!", "name}?"), commands="talk = app")
    result = cli("talk", "hello")
    assert result.exit_code == 2
    assert "acme-talk 1.2 and other-talk 1.2" in result.stderr
    assert cli("other-talk:talk", "hello", "--loud").stdout == "hello?\n"
