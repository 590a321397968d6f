"""A distribution that gptkit has never heard of: built, installed and used in an environment."""

import json
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

Process = subprocess.CompletedProcess[str]

FILES = {
    "pyproject.toml": """
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"

        [project]
        name = "acorn-dice"
        version = "3.1"
        dependencies = ["gptkit"]

        [project.entry-points."gptkit.datasets"]
        dice = "acorn_dice.dataset:Dice"

        [project.entry-points."gptkit.codecs"]
        dice = "acorn_dice.codec:DiceCodec"

        [project.entry-points."gptkit.callbacks"]
        stop-early = "acorn_dice.callback:StopEarly"
    """,
    "acorn_dice/__init__.py": "",
    "acorn_dice/codec.py": '''
        """Faces of dice as tokens; sampling needs only this."""

        from gptkit.codec import PromptError, TextCodec


        class DiceCodec(TextCodec):
            """A token per face, written as digits."""

            contract = 1
            faces: int

            @property
            def token_bytes(self):
                return [b"%d" % (face + 1) for face in range(self.faces)]

            def encode(self, prompt):
                wrong = [c for c in prompt if not (c.isdigit() and 1 <= int(c) <= self.faces)]
                if wrong:
                    raise PromptError(f"prompt: no die shows {wrong}", hint="use digits")
                return [int(c) - 1 for c in prompt] or [0]
    ''',
    "acorn_dice/dataset.py": '''
        """Throws of dice, each one more than the last."""

        import torch
        from gptkit.plugin import Data, Dataset, Split
        from pydantic import Field, PositiveInt

        from acorn_dice.codec import DiceCodec


        class Throws(Split):
            def __init__(self, faces, block_size, size):
                self.faces, self.block_size, self.size = faces, block_size, size

            def __len__(self):
                return self.size

            def __getitem__(self, indices):
                window = (indices[:, None] + torch.arange(self.block_size + 1)) % self.faces
                return window[:, :-1].contiguous(), window[:, 1:].contiguous()


        class Dice(Dataset):
            """A die that counts."""

            contract = 1

            faces: int = Field(default=6, ge=2, le=9)
            """Sides of the die."""
            block_size: PositiveInt = 8
            """Throws of context."""

            def load(self):
                train, val = (Throws(self.faces, self.block_size, n) for n in (60, 12))
                codec = DiceCodec(faces=self.faces)
                return Data(train, val, codec, vocab_size=self.faces, block_size=self.block_size)
    ''',
    "acorn_dice/callback.py": '''
        """Stop when there is nothing left to learn."""

        from gptkit.plugin import Callback
        from pydantic import PositiveFloat


        class StopEarly(Callback):
            """End training at a validation loss."""

            contract = 1

            below: PositiveFloat = 0.1
            """The validation loss that is low enough."""

            def on_eval_end(self, state):
                state.stop = state.stop or state.val_loss < self.below
    ''',
}

RECIPE = """
[dataset]
use = "dice"
faces = 5
[model]
n_layer = 1
n_head = 2
n_embd = 16
[train]
steps = 2000
batch_size = 8
eval_every = 20
[train.optimizer]
learning_rate = 1e-2
[[callbacks]]
use = "stop-early"
below = 0.2
"""

TELL_MODULES = """
import atexit, sys
from gptkit.cli.app import main
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
main()
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A fresh environment that sees this one's packages, such as torch, without a copy of them."""
    folder = tmp_path / "venv"
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    heavy = sysconfig.get_paths()["purelib"]
    (site / "heavy.pth").write_text(f"import site; site.addsitedir({heavy!r})\n")
    return folder / "bin" / "python"


@pytest.fixture
def install(python: Path, tmp_path: Path) -> Callable[[], None]:
    """Builds the foreign distribution's wheel and installs it into the environment."""

    def call() -> None:
        for name, content in FILES.items():
            path = tmp_path / "acorn" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(content))
        pip = [sys.executable, "-m", "pip", "--python", str(python), "--no-cache-dir", "install"]
        options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
        subprocess.run([*pip, *options, str(tmp_path / "acorn")], check=True)

    return call


@pytest.fixture
def run(python: Path, tmp_path: Path) -> Callable[..., Process]:
    """Runs the environment's gptkit; `program` starts it otherwise than by its name."""

    def call(*arguments: str, program: tuple[str, str] = ("-m", "gptkit")) -> Process:
        command = [str(python), *program, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return call


def test_a_foreign_distribution_is_installed_and_used(
    install: Callable[[], None], run: Callable[..., Process], tmp_path: Path
) -> None:
    (tmp_path / "dice.toml").write_text(RECIPE)
    install()
    trained = run("train", "dice.toml", "--out", "r")
    assert trained.returncode == 0, trained.stderr
    environment = json.loads((tmp_path / "r" / "environment.json").read_text())
    assert "acorn-dice 3.1" in str(environment["plugins"])
    steps = sorted(path.name for path in (tmp_path / "r" / "checkpoints").glob("step-*"))
    assert "step-00000020" <= steps[-1] < "step-00002000"  # stopped early
    state = json.loads((tmp_path / "r" / "checkpoints" / steps[-1] / "state.json").read_text())
    assert state["val_loss"] < 0.2
    assert state["codec"] == {
        "name": "dice", "distribution": "acorn-dice", "options": {"faces": 5}
    }  # fmt: skip

    likeliest = ["--prompt", "234", "--tokens", "7", "--temperature", "0"]
    drawn = run("sample", "r", *likeliest, program=("-c", TELL_MODULES))
    assert (drawn.returncode, drawn.stdout) == (0, "2345123451\n")
    imported = {name for name in drawn.stderr.split() if name.startswith("acorn_dice")}
    assert imported == {"acorn_dice", "acorn_dice.codec"}
