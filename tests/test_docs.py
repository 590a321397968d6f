"""The pages show real files: what docs/plugins.md prints is installed, used and tested here."""

import importlib.util
import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import tomli_w
import torch
import typer
from nbclient import NotebookClient
from typer.testing import Result

import gptkit
from gptkit.cli.app import app
from gptkit.model.gpt import GPT
from gptkit.plugin import CONTRACT, TokenFile
from gptkit.recipe.options import GPTConfig, MuonOptions
from gptkit.recipe.registry import GROUPS
from gptkit.testing import check_callback, make_state
from gptkit.training.optimizer import make_optimizer
from tests.support import execute

ROOT = Path(__file__).parent.parent


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def block_with(text: str) -> str:
    """The Python of docs/plugins.md that contains a text."""
    (found,) = (block for block in blocks("docs/plugins.md", "python") if text in block)
    return found


@pytest.fixture
def installed(tmp_path: Path) -> Callable[..., Callable[..., str]]:
    """Installs a package of these files into a folder; gives what runs programs that find it."""

    def install(name: str, **files: str) -> Callable[..., str]:
        project, target = tmp_path / name, tmp_path / "site"
        project.mkdir()
        for stem, text in files.items():
            suffix = "toml" if stem == "pyproject" else "py"
            (project / f"{stem}.{suffix}").write_text(text, encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        where = ["--no-build-isolation", "--target", str(target), str(project)]
        subprocess.run([*pip, *where], check=True)
        variables = {"PYTHONPATH": str(target), "PATH": "", "GPTKIT_CACHE": str(tmp_path / "c")}

        def run(*command: str) -> str:
            return execute(sys.executable, "-m", *command, cwd=tmp_path, env=variables)

        return run

    return install


def test_the_callback_of_the_page_installs_trains_and_passes_its_test(
    installed: Callable[..., Callable[..., str]], tmp_path: Path
) -> None:
    pyproject, use, *_ = blocks("docs/plugins.md", "toml")
    plugin, test, *_ = blocks("docs/plugins.md", "python")
    run = installed("early-stop", pyproject=pyproject, early_stop=plugin, test_early_stop=test)
    recipe = (ROOT / "recipes/shakespeare.toml").read_text() + "\n" + use
    (tmp_path / "recipe.toml").write_text(recipe)
    assert "Evaluations to wait for a lower loss." in " ".join(
        run("gptkit", "plugins", "show", "early-stop").split()
    )
    run("pytest", "-q", "-p", "no:cacheprovider", "early-stop")
    complete = tomllib.loads(run("gptkit", "check", "recipe.toml"))
    assert complete["callbacks"][-1] == {"use": "early-stop", "on_error": "stop", "patience": 5}


@pytest.mark.slow
def test_the_data_set_of_the_page_learns_to_add(
    installed: Callable[..., Callable[..., str]], tmp_path: Path
) -> None:
    pyproject, recipe = (
        next(block for block in blocks("docs/plugins.md", "toml") if text in block)
        for text in ('name = "sums"', 'use = "sums"')
    )
    codec, dataset, test = (
        block_with(text) for text in ("class SumCodec", "class Sums", "check_dataset(Sums()")
    )
    run = installed("sums", pyproject=pyproject, sums_codec=codec, sums=dataset, test_sums=test)
    (tmp_path / "sums.toml").write_text(recipe)
    run("pytest", "-q", "-p", "no:cacheprovider", "sums")
    run("gptkit", "train", "sums.toml", "--out", "runs/sums")
    asked = ("--prompt", "23+58=", "--temperature", "0")
    assert run("gptkit", "sample", "runs/sums", *asked) == "23+58=81\n"
    run("gptkit", "export", "runs/sums", "--onnx", "--out", "sums.onnx")
    for model in ("runs/sums", "sums.onnx"):
        drawn = run("gptkit", "sample", model, "--samples", "3", "--seed", "1")
        assert re.fullmatch(r"(\d+\+\d+=\d+\n-{10}\n){2}\d+\+\d+=\d+\n", drawn)
    assert run("gptkit", "sample", "sums.onnx", *asked) == "23+58=81\n"


@pytest.mark.slow
def test_the_format_and_the_command_of_the_page_work(
    installed: Callable[..., Callable[..., str]], tmp_path: Path
) -> None:
    project, entries = blocks("docs/plugins.md", "toml")[0], blocks("docs/plugins.md", "toml")[-1]
    about = project.partition("[project.entry")[0].replace("early-stop", "npz-and-size")
    only = '[tool.hatch.build.targets.wheel]\nonly-include = ["npz.py", "size.py"]\n'
    run = installed(
        "npz-and-size",
        pyproject=f"{about}{entries}{only}",
        npz=block_with("class Npz"),
        size=block_with("def size"),
        test_npz=block_with("check_format(Npz()"),
    )
    run("pytest", "-q", "-p", "no:cacheprovider", "npz-and-size")
    trained = ROOT / "tests/data/v0.1/text"
    (command,) = (c for b in blocks("docs/plugins.md", "sh") for c in b.splitlines() if "npz" in c)
    assert run(*command.replace("runs/sums", str(trained)).split()) == "sums.npz\n"
    found = np.load(tmp_path / "sums.npz")
    assert found["h.0.attn.qkv.weight"].dtype == np.float16
    parameters = sum(found[name].size for name in found.files if name != "config")
    assert int(run("gptkit", "size", str(trained))) == parameters


def load(path: Path, source: str) -> Any:
    """The module of a file with this source."""
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ITEMS = """
import torch
from gptkit.plugin import Split

class Items(Split):
    def __len__(self):
        return 10

    def __getitem__(self, indices):
        raise NotImplementedError

"""


@pytest.mark.parametrize("name", ["Mean", "LayerRates", "GrowBatch", "Tracker"])
def test_the_callbacks_of_the_page_keep_the_contract(name: str, tmp_path: Path) -> None:
    start = "from gptkit.plugin import Callback\nsend = dict\n"
    source = start + block_with(f"class {name}(Callback)")
    check_callback(getattr(load(tmp_path / f"page_{name.lower()}.py", source), name)(), tmp_path)


def test_the_codec_with_a_field_keeps_its_words_in_json(tmp_path: Path) -> None:
    kind = load(tmp_path / "page_words.py", block_with("class WordCodec")).WordCodec
    codec = kind(words=("to", "be"))
    assert codec.encode("be to") == [2, 1, 0]
    assert codec.decode(codec.encode("be to")) == b"be to "
    assert kind.model_validate_json(codec.model_dump_json()) == codec


def test_the_layers_of_the_page_have_rates_of_their_own(tmp_path: Path) -> None:
    source = block_with("class LayerRates(Callback)")
    rates = load(tmp_path / "page_rates.py", source).LayerRates(factor=0.5)
    shape = {"n_layer": 3, "n_head": 1, "n_embd": 4, "vocab_size": 5, "block_size": 4}
    state = make_state()
    state.model = GPT(GPTConfig.model_validate(shape))
    state.recipe = {"model": {"n_layer": 3}}
    state.optimizer = make_optimizer(state.model, MuonOptions())
    rates.on_fit_start(state)
    found = {g["name"]: g["lr"] for g in state.optimizer.param_groups}
    assert [found[f"hidden/{i}"] for i in range(3)] == [0.005, 0.01, 0.02]
    assert (found["plain/0"], found["decayed/outside"]) == (0.001 / 4, 0.001)


def test_the_order_of_the_page_reads_every_item_once_per_epoch(tmp_path: Path) -> None:
    split = load(tmp_path / "page.py", ITEMS + block_with("class Epochs")).Epochs()
    seen = torch.cat([split.indices(7, step, 4) for step in range(10)]).view(4, 10)
    assert all(epoch.sort().values.equal(torch.arange(10)) for epoch in seen)
    assert not seen[0].equal(seen[1])
    assert split.indices(7, 2, 25).equal(torch.cat([split.order(7, e) for e in (5, 6, 7)])[:25])


def test_the_tokens_of_the_page_are_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data.txt").write_bytes(b"to be")
    tokens_of = load(tmp_path / "page.py", block_with("def tokens_of")).tokens_of
    made = tokens_of(tmp_path / "data.txt").stat().st_mtime_ns
    tokens = tokens_of(tmp_path / "data.txt")
    assert tokens.stat().st_mtime_ns == made
    x, y = TokenFile(tokens, "uint8", stop=5, block_size=4)[torch.tensor([0])]
    assert bytes(x[0].tolist()) + bytes(y[0].tolist()) == b"to bo be"


@pytest.fixture
def quick_recipe(tmp_path: Path) -> Path:
    """A folder with a `recipes/shakespeare.toml` that trains 300 steps in seconds."""
    table = tomllib.loads((ROOT / "recipes/shakespeare.toml").read_text())
    table["dataset"]["block_size"] = 16
    table["model"] = {"n_layer": 1, "n_head": 1, "n_embd": 8}
    table["train"] = {"steps": 250, "batch_size": 8, "eval_batches": 1, "device": "cpu"}
    table["callbacks"] = [{"use": "log", "sample_tokens": 0, "every": 50}]
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/shakespeare.toml").write_text(tomli_w.dumps(table))
    return tmp_path


def test_the_programs_of_the_python_page_run(
    quick_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(quick_recipe)
    names: dict[str, Any] = {"__name__": "page"}
    said = []
    for block in blocks("docs/python.md", "python"):
        exec(compile(block, "docs/python.md", "exec"), names)  # noqa: S102
        said.append(capsys.readouterr().out)
    assert sum(names["text"] in printed for printed in said) == 2  # streamed, and from the file
    assert said[-1].endswith('train.stepz: unknown key; did you mean "steps"?\n')
    assert len(names["logprobs"]) == len("to be or not to be") - 1
    assert (names["run"].last.step, names["fork"].last.step) == (20, 10)
    assert "wte_norm" in names["run"].metrics[-2]


def test_the_notebook_runs(quick_recipe: Path) -> None:
    notebook = nbformat.read(ROOT / "docs/python.ipynb", as_version=4)
    assert all(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    folder = quick_recipe / "docs"
    folder.mkdir()
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": folder}}).execute()
    (run,) = map(gptkit.Run, (folder / "runs").iterdir())
    assert run.last and run.last.step == 310


def test_the_tables_of_the_scaling_page_are_what_its_program_prints() -> None:
    page = (ROOT / "docs/scaling.md").read_text()
    command = [sys.executable, ROOT / "docs/scaling.py"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parameters, ddp = re.findall(r"[\d.]+", said.splitlines()[0])
    assert f"P = 32 · 12 C² + V C = {parameters} billion" in page
    sums = [ddp, *re.findall(r"FSDP2 on (?:8|64) GPUs ([\d.]+) GB", said)]
    assert f"| sum | | {' | '.join(f'{gb} GB' for gb in sums)} |" in page
    assert said[said.index("| GPUs") :] in page


def test_the_parameters_on_the_scaling_page_are_those_of_the_model() -> None:
    with torch.device("meta"):
        shape = {"n_layer": 32, "n_head": 32, "n_embd": 4096, "norm": "rmsnorm", "bias": False}
        sizes = {"position": "rotary", "vocab_size": 50_304, "block_size": 2048}
        model = GPT(GPTConfig.model_validate(shape | sizes), seed=None)
    norms = (2 * 32 + 1) * 4096
    assert model.n_parameters() - norms == 32 * 12 * 4096**2 + 50_304 * 4096


SHORT = "--set train.steps=2 --set train.eval_batches=1 --set callbacks.log.sample_tokens=0"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with the recipes."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    return tmp_path


def sh(script: str, folder: Path, **variables: str) -> str:
    """What a shell script prints on stderr; it must not fail."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "CUDA_VISIBLE_DEVICES": ""} | variables
    command = ["bash", "-euc", script]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_the_commands_of_the_scaling_page_run(shop: Path) -> None:
    train, again, shard, restart, machines = blocks("docs/scaling.md", "sh")
    assert "on 2 x cpu in float32" in sh(f"{train.strip()} {SHORT}", shop)
    torchrun, alone = again.splitlines()
    assert "complete at step 2" in sh(torchrun, shop)
    assert "complete at step 2" in sh(alone, shop)
    assert "on 2 x cpu in float32" in sh(f"{shard.strip()} {SHORT}", shop)
    assert "on 2 x cpu in float32" in sh(f"{restart.strip()} {SHORT}", shop)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        command = machines.strip().replace("29400", str(free.getsockname()[1]))
    command = command.replace("--nproc-per-node 2", "--nproc-per-node 1")
    both = f"{command} {SHORT} & first=$!; {command} {SHORT}; wait $first"
    said = sh(both, shop, HEAD="localhost")
    assert said.count("runs/two-machines: 1.58 M parameters on 2 x cpu in float32\n") == 1


@pytest.mark.slow
def test_the_job_of_the_scaling_page_trains_and_goes_on(shop: Path) -> None:
    """With stand-ins for Slurm's two programs: one machine, whose tasks run here."""
    (job,) = blocks("docs/scaling.md", "bash")
    stubs = {"srun": 'exec "$@"', "scontrol": "echo localhost"}
    for name, line in stubs.items():
        (shop / name).write_text(f"#!/bin/bash\n{line}\n")
        (shop / name).chmod(0o755)
    (shop / "train.sh").write_text(job.replace("--out $run", f"--out $run {SHORT}"))
    variables = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "here", "SLURM_NNODES": "1"}
    variables |= {"SLURM_GPUS_ON_NODE": "2"}
    script = f"export PATH={shop}:$PATH; bash -e train.sh"
    assert "runs/job-7: 1.58 M parameters on 2 x cpu" in sh(script, shop, **variables)
    assert "runs/job-7: complete at step 2" in sh(script, shop, **variables)


def test_every_file_that_the_readme_names_exists() -> None:
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"\b(?:recipes|docs|benchmarks)/[\w./-]+\.(?:toml|md|py)\b", text):
        assert (ROOT / name).is_file(), name
    tree = re.findall(r"^  ([a-z_]+\.py) ", text, flags=re.MULTILINE)
    modules = {path.name for path in (ROOT / "gptkit").glob("*.py") if "__" not in path.name}
    assert set(tree) == modules
    tree = re.findall(r"^  ([a-z_]+)/ ", text, flags=re.MULTILINE)
    folders = {path.parent.name for path in (ROOT / "gptkit").glob("*/*.py")}
    assert folders <= set(tree)


def test_compatibility_names_what_there_is() -> None:
    page, readme = ((ROOT / name).read_text() for name in ("docs/compatibility.md", "README.md"))
    table = readme.partition("## Exit codes\n\n")[2].partition("\n\n")[0].strip()
    assert table in page
    assert f"contract = {CONTRACT}\n" in page
    assert all(f"`{group}`" in page for group in GROUPS.values())


def test_the_picture_of_the_readme_can_be_drawn(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 1, "val_loss": 2.1}\n')
    (run / "samples/step-00000001.txt").write_text("a $sample\n")
    command = [sys.executable, ROOT / "docs/readme_picture.py", run, tmp_path / "out.png"]
    subprocess.run(command, check=True)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_the_readme_shows_the_recipe_as_it_is() -> None:
    assert (ROOT / "recipes/shakespeare.toml").read_text() in blocks("README.md", "toml")


OTHER_TOOLS = "docs/from-other-tools.md"


def test_every_command_for_people_from_other_tools_exists(
    cli: Callable[..., Result], tiny_recipe: Callable[..., Path]
) -> None:
    page = (ROOT / OTHER_TOOLS).read_text()
    lines = re.findall(r"`(gptkit [^`]*)`", page)
    lines += "".join(blocks(OTHER_TOOLS, "sh")).splitlines()
    assert len(lines) > 15
    for line in lines:
        words = shlex.split(re.split(" [<>] ", line)[0])[1:]
        if words[0].startswith("--"):
            assert words[0] in cli("--help").stdout
            continue
        command = typer.main.get_command(app).commands[words[0]]
        with command.make_context(words[0], words[1:]) as context:  # an unknown option raises
            overrides = context.params.get("overrides", [])
        for override in overrides:
            assert cli("check", tiny_recipe(), "--set", override).exit_code == 0, line


def test_every_field_for_people_from_other_tools_exists(
    cli: Callable[..., Result], tiny_recipe: Callable[..., Path]
) -> None:
    page = (ROOT / OTHER_TOOLS).read_text()
    fields = re.findall(r"`\[([\w.]+)\] (\w+) = ([^`]+)`", page)
    assert len(fields) > 12
    for table, key, value in fields:
        overrides = ["--set", f"{table}.{key}={value}", "--set", "model.n_embd=192"]
        overrides += ["--set", "train.batch_size=8"] if key == "micro_batch_size" else []
        assert cli("check", tiny_recipe(), *overrides).exit_code == 0, (table, key)


def test_what_is_mistyped_on_the_page_is_answered_as_it_says(cli: Callable[..., Result]) -> None:
    (session,) = re.findall(r"```\n(\$ gptkit.*?)```", (ROOT / OTHER_TOOLS).read_text(), re.DOTALL)
    typed = re.findall(r"^\$ gptkit (.*)\n((?:error|hint).*\n(?:hint.*\n)?)", session, re.MULTILINE)
    assert len(typed) == session.count("$")
    for words, answer in typed:
        assert cli(*shlex.split(words)).stderr == answer
