"""`gptkit sample model.onnx`: the checkpoint's samples without torch; files that are no model."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper
from PIL import Image
from typer.testing import Result

from gptkit.errors import GptkitError, UsageError
from gptkit.onnx.export.export import export
from gptkit.onnx.proof.seal import append_proof
from gptkit.onnx.runtime.generate_session import GenerateSession, next_context
from gptkit.onnx.runtime.metadata import (
    FORMAT,
    KEY,
    MAX_PROOF_BYTES,
    PROOF_FORMAT,
    PROOF_KEY,
    check_files,
)
from gptkit.onnx.runtime.model import OnnxModel, load_exported
from gptkit.onnx.runtime.providers import gpus
from gptkit.runs.loaded import load_checkpoint
from gptkit.sampling.rule import SamplingOptions
from gptkit.sampling.samples import SampleRequest
from gptkit.sampling.stops import Stops
from tests.support import execute, stir, train

ROOT = Path(__file__).parents[1]

Command = Callable[..., Result]
Program = Callable[..., "subprocess.CompletedProcess[str]"]

DATASETS: dict[str, dict[str, Any]] = {
    "text": {"use": "char-text", "block_size": 16},
    "pixels": {
        "use": "cifar10", "source": "shapes", "size": 4, "colors": 8, "class_conditional": True
    },
}  # fmt: skip
MODEL = {"n_layer": 2, "n_head": 2, "n_embd": 16, "position": "rotary", "norm": "rmsnorm"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By data set, a folder with a run "r", a "model.onnx" and a "bundle"; no test changes them."""
    found = {}
    for name, dataset in DATASETS.items():
        found[name] = tmp_path_factory.mktemp(name)
        path = stir(train(found[name], dataset, MODEL), scale=0.3)
        export(path, out=found[name] / "model.onnx")
        export(path, out=found[name] / "bundle")
    return found


@pytest.fixture
def text(folders: dict[str, Path]) -> Path:
    return folders["text"]


@pytest.fixture
def pixels(folders: dict[str, Path]) -> Path:
    return folders["pixels"]


# The same samples.


def test_real_processes_print_the_same_text(text: Path, gptkit: Program) -> None:
    options = ["--prompt", "Shall I compare thee to", "--tokens", 60, "--seed", 5]
    expected = gptkit("sample", text / "r", *options)
    assert (expected.returncode, expected.stderr.count("\n")) == (0, 1)
    assert expected.stderr.startswith("running on ")
    assert len(expected.stdout) == 23 + 60 + 1
    for exported in ("model.onnx", "bundle"):
        found = gptkit("sample", text / exported, *options)
        assert (found.returncode, found.stdout) == (0, expected.stdout)
        assert found.stderr == "running on CPUExecutionProvider\n" or gpus()


@pytest.mark.parametrize("exported", ["model.onnx", "bundle"])
@pytest.mark.parametrize(
    "options",
    [
        [], ["--seed", 3, "--tokens", 5], ["--temperature", 0, "--tokens", 50],
        ["--top-k", 4, "--tokens", 50, "--temperature", 1.2],
        ["--top-p", 0.7, "--tokens", 50, "--samples", 3],
        ["--prompt", "From fairest creatures", "--keep", 0.5, "--samples", 2, "--tokens", 9],
        ["--tokens", 3, "--ids", "--samples", 2], ["--ids", "--prompt", "a", "--seed", 2**63 - 1],
    ],
    ids=lambda options: " ".join(map(str, options)),
)  # fmt: skip
def test_every_option_means_the_same(
    exported: str, options: list[object], text: Path, cli: Command
) -> None:
    ours = cli("sample", text / exported, *options, "--device", "cpu")
    theirs = cli("sample", text / "r", *options, "--device", "cpu")
    assert (ours.exit_code, ours.stderr) == (0, "")
    assert ours.stdout == theirs.stdout


def test_samples_go_to_a_file(text: Path, cli: Command, tmp_path: Path) -> None:
    for name, source in (("a", "model.onnx"), ("b", "bundle"), ("c", "r")):
        for options in ([], ["--ids"]):
            out = tmp_path / f"{name}{len(options)}.txt"
            result = cli("sample", text / source, "--samples", 2, "--out", out, *options)
            assert (result.exit_code, result.stdout) == (0, "")
    for i in (0, 1):
        contents = {(tmp_path / f"{name}{i}.txt").read_bytes() for name in "abc"}
        assert len(contents) == 1


@pytest.mark.parametrize(
    "options",
    [
        [], ["--samples", 4, "--seed", 3], ["--class", "ring", "--samples", 2],
        ["--tokens", 5, "--top-k", 3],
        ["--prompt", "photo.png", "--keep", 0.5, "--class", "ring"],
    ],
    ids=lambda options: " ".join(map(str, options)),
)  # fmt: skip
def test_pictures_are_the_same_byte_for_byte(
    options: list[object], pixels: Path, cli: Command, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 20), "red").save(tmp_path / "photo.png")
    for name, source in (("a.png", "model.onnx"), ("b.png", "bundle"), ("c.png", "r")):
        result = cli("sample", pixels / source, *options, "--out", name)
        assert result.exit_code == 0, result.output
    pictures = {(tmp_path / name).read_bytes() for name in ("a.png", "b.png", "c.png")}
    assert len(pictures) == 1
    assert pictures.pop().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt", "Ω"], "Ω"), (["--class", "cat"], "this model knows no classes"),
        (["--keep", "2"], "keep should be between 0 and 1, got 2"),
        (["--top-p", "0"], "top_p should be above 0"), (["--seed", "-1"], "seed should be 0"),
        (["--device", "mps"], 'unknown device for an exported model: "mps"'),
        (["--device", "tpu"], 'unknown device for an exported model: "tpu"'),
    ],
)  # fmt: skip
def test_mistakes_are_told_as_for_a_run(
    options: list[str], said: str, text: Path, cli: Command
) -> None:
    result = cli("sample", text / "model.onnx", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_whole_images_cannot_be_continued(pixels: Path, cli: Command, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "photo.png")
    result = cli("sample", pixels / "model.onnx", "--prompt", "photo.png", "--out", "no.png")
    assert result.exit_code == 2
    assert "the prompt already fills the sample" in result.stderr
    result = cli("sample", pixels / "model.onnx")
    assert result.exit_code == 2
    assert "--out out.png" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


# Shown as they are drawn or not.


@pytest.fixture(params=["model.onnx", "bundle"])
def model(request: pytest.FixtureRequest, text: Path) -> OnnxModel:
    return load_exported(text / request.param, device="cpu")


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("", {}), ("a", {"top_k": 5, "top_p": 0.9, "seed": 4}),
        ("Shall I compare thee to a summer's day?", {"temperature": 0}),
    ],
    ids=["sampled", "of the likeliest", "greedy"],
)  # fmt: skip
def test_drawing_in_parts_is_drawing_at_once(
    prompt: str, options: dict[str, Any], model: OnnxModel, text: Path
) -> None:
    sampling = SamplingOptions(**options)
    trained = load_checkpoint(text / "r", device="cpu")
    for samples, tokens in ((1, 130), (3, 50), (2, 1), (1, 15), (1, 16), (1, 17)):
        request = SampleRequest(prompt, tokens=tokens, samples=samples)
        expected = trained.draw(request, sampling).token_ids()
        assert model.draw(request, sampling, streaming=True).token_ids() == expected
        assert model.draw(request, sampling).token_ids() == expected


@pytest.mark.parametrize("dtype", ["float16", "int8", "int4"])
def test_other_precisions_come_a_context_at_a_time(dtype: str, text: Path, tmp_path: Path) -> None:
    """Where the graph would begin with an empty cache, so that nothing is rounded differently."""
    export(text / "r", out=tmp_path / "a.onnx", dtype=dtype)
    model = load_exported(tmp_path / "a.onnx", device="cpu")
    session, size = model.session, model.block_size
    assert isinstance(session, GenerateSession)
    for prompts in (np.array([[1], [2]]), np.array([[3] * 7]), np.array([[4] * (2 * size)])):
        at_once = session.generate(prompts, 90, SamplingOptions(seed=3))
        chunk = session.first_chunk(streaming=True, stops=Stops())
        parts = list(session.stream(prompts, 90, SamplingOptions(seed=3), chunk=chunk))
        assert np.concatenate(parts, axis=1).tolist() == at_once.tolist()
        assert max(part.shape[1] for part in parts) <= size
        assert len(parts) >= 90 // size
    drawing = model.draw(SampleRequest(tokens=10**8), SamplingOptions(), streaming=True)
    for _ in range(40):
        next(drawing.steps)


@pytest.mark.timeout(40)
def test_the_first_tokens_come_early(model: OnnxModel) -> None:
    drawing = model.draw(SampleRequest(tokens=10**8), SamplingOptions(), streaming=True)
    for _ in range(40):
        next(drawing.steps)
    assert len(drawing.samples[0].tokens) == 1 + 40


@pytest.mark.parametrize("block_size", [1, 2, 5, 8])
def test_the_context_between_two_runs(block_size: int) -> None:
    for length in range(1, block_size + 1):
        for count in range(40):
            tokens = np.arange(length + count)[None]
            window = length
            for _ in range(count):
                window = max(1, block_size // 2) if window == block_size else window + 1
            found = next_context(tokens[:, :length], tokens[:, length:], block_size)
            assert found.tolist() == [list(range(length + count - window, length + count))]


@pytest.mark.parametrize(
    ("exported", "options"),
    [("model.onnx", []), ("model.onnx", ["--out", "s.txt"]), ("bundle", [])],
)
def test_ctrl_c_ends_a_long_drawing(
    exported: str, options: list[str], text: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "gptkit", "sample", str(text / exported), *options]
    command += ["--tokens", str(10**7)]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        try:
            assert process.stderr.readline().startswith("running on ")
            begun = seconds(process.pid)
            while seconds(process.pid) < begun + 2:  # so it is drawing by now
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()
        told = "written: s.txt\nstopped" if options else "stopped"
        assert process.stderr.read().strip() == told
    written = [path.read_text() for path in tmp_path.iterdir()]
    assert len(written) == bool(options)
    assert all(len(drawn) > 100 for drawn in written), "what was drawn is kept"


def seconds(pid: int) -> float:
    """Of CPU that a process has taken."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_on_a_terminal_the_text_is_the_same(text: Path, cli: Command) -> None:
    options = ["--tokens", "80", "--seed", "6"]
    expected = cli("sample", text / "r", *options).stdout
    command = [sys.executable, "-m", "gptkit", "sample", str(text / "model.onnx"), *options]
    keyboard, terminal = os.openpty()
    with open(keyboard, "rb", buffering=0) as screen:  # noqa: PTH123 (a descriptor, no path)
        with subprocess.Popen(command, stdout=terminal, stderr=subprocess.PIPE) as process:
            os.close(terminal)
            shown = b"".join(read_to_the_end(screen))
            assert process.wait(60) == 0
    assert shown.decode().replace("\r\n", "\n") == expected


def read_to_the_end(screen: Any) -> Iterator[bytes]:
    try:
        while chunk := screen.read(1024):
            yield chunk
    except OSError:  # how Linux says that the other side has closed the terminal
        return


@pytest.mark.parametrize("exported", [pytest.param("model.onnx", marks=pytest.mark.slow), "bundle"])
def test_a_reader_that_leaves_ends_sampling(exported: str, text: Path) -> None:
    command = [sys.executable, "-m", "gptkit", "sample", str(text / exported), "--device", "cpu"]
    command += ["--tokens", "20000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert len(process.stdout.read(20)) == 20
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) != 0


def test_a_stop_token_ends_the_rows(text: Path) -> None:
    single = GenerateSession(text / "model.onnx", "cpu")
    prompt = np.array([[1, 2], [3, 4]])
    endless = single.generate(prompt, 60, SamplingOptions(seed=2))
    stop = int(endless[0, 7])
    found = single.generate(prompt, 60, SamplingOptions(seed=2), stop_tokens=[stop])
    ends = [row.tolist().index(stop) if stop in row else 60 for row in endless]
    assert found.shape[1] == min(60, max(ends) + 1)
    for row, whole, end in zip(found, endless, ends, strict=True):
        assert row[:end].tolist() == whole[:end].tolist()
        assert set(row[end:]) <= {stop}


# What is imported, and what need not be installed.

TELL_MODULES = """
import atexit, sys
from gptkit.cli.app import main
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
main()
"""


RUNTIME = sorted(path.stem for path in (ROOT / "gptkit/onnx/runtime").glob("[!_]*.py"))


@pytest.mark.parametrize("module", RUNTIME)
def test_the_runtime_imports_torch_nowhere(module: str) -> None:
    code = f"import sys, gptkit.onnx.runtime.{module}; print(*sys.modules)"
    loaded = execute(sys.executable, "-c", code).split()
    assert f"gptkit.onnx.runtime.{module}" in loaded
    assert not {"torch", "onnx", "onnx_ir"} & set(loaded)


@pytest.mark.parametrize("exported", ["model.onnx", "bundle"])
def test_torch_is_not_imported(exported: str, text: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", TELL_MODULES, "sample", str(text / exported), "--tokens", "3"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    packages = {name.partition(".")[0] for name in result.stderr.split()}
    assert packages >= {"gptkit", "gptkit_char_text", "onnxruntime"}
    assert not packages & {"torch", "torchvision", "transformers", "onnx", "onnx_ir", "onnxscript"}


RUNES = """
    from gptkit_char_text.codec import CharCodec
    from gptkit_char_text.dataset import CharText
    from gptkit.plugin import Data

    class Runes(CharCodec):
        pass

    class RuneText(CharText):
        def load(self):
            data = super().load()
            codec = Runes(vocabulary=data.codec.vocabulary)
            return Data(data.train, data.val, codec, data.vocab_size, data.block_size)
"""


@pytest.mark.parametrize("exported", ["model.onnx", pytest.param("bundle", marks=pytest.mark.slow)])
def test_a_codec_that_is_not_installed(
    exported: str, distribution: Callable[..., Path], cli: Command, tmp_path: Path
) -> None:
    entries = {"datasets": "runes = RuneText", "codecs": "runes = Runes"}
    site = distribution("acme-runes", RUNES, **entries)
    path = train(tmp_path, {"use": "runes", "block_size": 16}, MODEL)
    export(path, out=tmp_path / exported)
    with_codec = cli("sample", exported, "--ids", "--samples", 2, "--device", "cpu")
    assert with_codec.exit_code == 0
    next(site.glob("*.dist-info/entry_points.txt")).unlink()
    for options in ([], ["--prompt", "a"], ["--prompt", "a", "--ids"], ["--out", "x.txt"]):
        result = cli("sample", exported, *options, "--device", "cpu")
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        assert 'error: the codec "runes" that this model needs is not installed' in result.stderr
        assert "hint:  pip install acme-runes" in result.stderr
        assert not (tmp_path / "x.txt").exists()
    result = cli("sample", exported, "--ids", "--samples", 2, "--device", "cpu")
    assert (result.exit_code, result.stdout) == (0, with_codec.stdout)
    assert len(result.stdout.splitlines()) == 2


# Devices.


@pytest.mark.skipif(gpus() > 0, reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
@pytest.mark.parametrize("exported", ["model.onnx", "bundle"])
def test_cuda_that_is_not_there_is_an_error(
    exported: str, device: str, text: Path, cli: Command
) -> None:
    result = cli("sample", text / exported, "--device", device)
    assert (result.exit_code, result.stdout) == (2, "")
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: CUDA is not available: ")
    assert "CPUExecutionProvider" in error
    assert 'pip install "onnxruntime-gpu[cuda,cudnn]"' in hint
    assert "gptkit doctor" in hint
    assert "--device cpu" in hint


def test_auto_says_what_it_took(text: Path, cli: Command) -> None:
    for exported in ("model.onnx", "bundle"):
        result = cli("sample", text / exported, "--tokens", 3)
        assert result.exit_code == 0
        assert result.stderr in {
            "running on CPUExecutionProvider\n", "running on CUDAExecutionProvider\n"
        }  # fmt: skip
        assert cli("sample", text / exported, "--tokens", 3, "--device", "cpu").stderr == ""


# Files that are damaged, or something else.


@pytest.fixture
def refused(cli: Command, tmp_path: Path) -> Callable[..., str]:
    """Samples from a file, which must fail and write nothing; gives the error."""

    def call(path: Path, *options: object, exit_code: int = 1) -> str:
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
        result = cli("sample", path, *options, "--device", "cpu", "--out", "no.txt")
        assert (result.exit_code, result.stdout) == (exit_code, ""), result.output
        assert result.stderr.startswith("error: ")
        assert "\nhint:  " in result.stderr
        assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
        return result.stderr

    return call


def test_a_file_that_is_cut_off(text: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    whole = (text / "model.onnx").read_bytes()
    proof = whole.rindex(PROOF_KEY.encode())
    places = [len(whole) * i // 50 for i in range(50)]
    places += [*range(proof - 30, len(whole), 13), len(whole) - 1]
    for place in places:
        (tmp_path / "cut.onnx").write_bytes(whole[:place])
        said = refused(tmp_path / "cut.onnx")
        lacks = f'cut.onnx: has no metadata "{PROOF_KEY}"'
        assert lacks in said or "cut.onnx: damaged: " in said, place


def test_flipped_bits(text: Path, cli: Command, tmp_path: Path) -> None:
    whole = (text / "model.onnx").read_bytes()
    proof = whole.rindex(PROOF_KEY.encode()) - 30
    random = np.random.default_rng(0)
    expected = cli("sample", text / "model.onnx", "--tokens", 5, "--device", "cpu").stdout
    places = [*random.integers(0, proof, 30), *random.integers(proof, len(whole), 60)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.integers(8)
        (tmp_path / "flipped.onnx").write_bytes(damaged)
        result = cli("sample", tmp_path / "flipped.onnx", "--tokens", 5, "--device", "cpu")
        if result.exit_code == 0:  # in what is only told, not used
            assert place >= proof
            assert result.stdout == expected
        else:
            assert (result.exit_code, result.stdout) == (1, "")
            assert "flipped.onnx: " in result.stderr


def test_more_bytes_at_the_end(text: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    whole = (text / "model.onnx").read_bytes()
    field = onnx.ModelProto(producer_name="another").SerializeToString()  # protobuf merges it
    entry = onnx.ModelProto()
    entry.metadata_props.add(key="more", value="{}")
    for more in (b"\0", b"\n", b"x\n", b"}", b"garbage", whole, field, entry.SerializeToString()):
        (tmp_path / "long.onnx").write_bytes(whole + more)
        assert "long.onnx: damaged: " in refused(tmp_path / "long.onnx")


def tiny() -> onnx.ModelProto:
    """What another program may have written."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "tiny", [x], [y])
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def test_files_of_other_programs(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    for contents in (b"", b"\0" * 5000, b"A poem.\n" * 9, tiny().SerializeToString()):
        path.write_bytes(contents)
        said = refused(path)
        assert f'other.onnx: has no metadata "{PROOF_KEY}"' in said
        assert "gptkit samples only complete files that gptkit export wrote" in said
    append_proof(path, [])
    assert f'other.onnx: has no metadata "{KEY}"' in refused(path)


@pytest.mark.parametrize("name", ["none.onnx", "folder.onnx", "deep/er/none.onnx"])
def test_files_that_are_not_there(name: str, refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    assert "no such file" in refused(tmp_path / name, exit_code=2)


def test_a_file_that_cannot_be_read(
    text: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def refuse(path: Path, *arguments: Any) -> int:
        if Path(path).suffix == ".onnx":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments)

    monkeypatch.setattr(os, "open", refuse)
    assert "model.onnx: cannot be read: Permission denied" in refused(text / "model.onnx")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")
def test_pipes_and_devices_are_no_models(
    bundle: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "zeros.onnx").symlink_to("/dev/zero")
    for name in ("pipe.onnx", "zeros.onnx"):
        assert f"{name}: cannot be read: is a " in refused(tmp_path / name)
    for name in ("model.safetensors", "generate.onnx"):  # in the order of their checks, backwards
        (bundle / name).unlink()
        os.mkfifo(bundle / name)
        assert f"{name}: cannot be read: is a " in refused(bundle)


@pytest.fixture
def described(tmp_path: Path) -> Callable[..., Path]:
    """Makes a whole, sealed file that describes itself in other words, by default of any graph."""

    def write(metadata: Any, graph: Path | None = None) -> Path:
        proto = onnx.load(graph) if graph else tiny()
        del proto.metadata_props[:]
        said = metadata if isinstance(metadata, str) else json.dumps(metadata)
        proto.metadata_props.add(key=KEY, value=said)
        path = tmp_path / "described.onnx"
        onnx.save(proto, path)
        append_proof(path, [])
        return path

    return write


def metadata_of(path: Path) -> dict[str, Any]:
    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    found: dict[str, Any] = json.loads(entries[KEY])
    return found


def test_a_newer_format(
    text: Path, described: Callable[..., Path], refused: Callable[..., str], tmp_path: Path
) -> None:
    newer = metadata_of(text / "model.onnx") | {"format": FORMAT + 1}
    del newer["codec"]
    said = refused(described(newer))
    assert f"exported in format {FORMAT + 1}, this gptkit reads {FORMAT}" in said
    assert "hint:  pip install --upgrade gptkit" in said
    path = tmp_path / "newer.onnx"
    whole = (text / "model.onnx").read_bytes()
    at = whole.rindex(b'{"format":1')
    path.write_bytes(whole[:at] + b'{"format":7' + whole[at + 11 :])
    assert f"exported in format 7, this gptkit reads {PROOF_FORMAT}" in refused(path)


def test_fields_that_are_unknown_are_passed_over(
    text: Path, described: Callable[..., Path], cli: Command
) -> None:
    more = metadata_of(text / "model.onnx") | {"mixture": [1, 2]}
    ours = cli("sample", described(more, text / "model.onnx"), "--tokens", 9)
    assert (ours.exit_code, ours.stdout) == (
        0, cli("sample", text / "model.onnx", "--tokens", 9).stdout
    )  # fmt: skip


def fields(value: dict[str, Any], *above: str) -> Iterator[tuple[str, ...]]:
    """The paths of all fields whose shape gptkit relies on."""
    for name, inner in value.items():
        yield (*above, name)
        if name in {"codec", "tokens"}:
            yield from fields(inner, *above, name)


def test_metadata_of_the_wrong_shape(
    text: Path, described: Callable[..., Path], refused: Callable[..., str]
) -> None:
    good = metadata_of(text / "model.onnx")
    places = list(fields(good))
    assert len(places) > 20
    for *above, name in places:
        missing = object()
        for wrong in (missing, None, [[]], {"a": [1]}, "nonsense", -3.5):
            if fits(good, above, name, wrong):
                continue
            metadata = json.loads(json.dumps(good))
            holder = metadata
            for key in above:
                holder = holder[key]
            if wrong is missing:
                del holder[name]
            else:
                holder[name] = wrong
            said = refused(described(metadata))
            assert f"metadata gptkit.{'.'.join((*above, name))}" in said, (above, name, wrong)


def fits(good: dict[str, Any], above: list[str], name: str, wrong: Any) -> bool:
    """Whether that value, or none, is as good as any."""
    value: Any = good
    for key in (*above, name):
        value = value[key]
    if name == "format":  # it has a default, and so have stop tokens
        return not isinstance(wrong, str | list | dict | None)
    if name == "stop_tokens":
        return not isinstance(wrong, str | float | dict | None)
    if name in {"val_loss", "length", "legend"} and wrong is None:
        return True
    if name == "graph":
        return False
    kinds = {type(value)} | ({float} if name in {"val_loss", "temperature"} else set())
    return type(wrong) in kinds | ({dict} if name == "legend" else set())


@pytest.mark.parametrize("wrong", ["", "null", "[]", "{", '{"format":1', "1e999", '"x"', "[" * 999])
def test_metadata_that_is_no_object(
    wrong: str, described: Callable[..., Path], refused: Callable[..., str]
) -> None:
    assert "described.onnx: damaged: metadata gptkit" in refused(described(wrong))


@pytest.mark.parametrize("starts", [[], [[]], [[10**6]], [[-1]], [[1], [1, 2]], [[0.5]], [["a"]]])
def test_starts_that_the_model_cannot_read(
    starts: Any, text: Path, described: Callable[..., Path], refused: Callable[..., str]
) -> None:
    metadata = metadata_of(text / "model.onnx")
    metadata["tokens"]["starts"] = starts
    assert "starts" in refused(described(metadata, text / "model.onnx"), "--samples", 2)


def test_a_codec_of_another_shape(
    text: Path, described: Callable[..., Path], refused: Callable[..., str]
) -> None:
    metadata = metadata_of(text / "model.onnx")
    metadata["codec"]["options"] = {"vocabulary": 5}
    assert "vocabulary" in refused(described(metadata, text / "model.onnx"), exit_code=2)
    metadata["codec"] = {"name": "nope", "distribution": "acme", "options": {}}
    said = refused(described(metadata, text / "model.onnx"), exit_code=2)
    assert "hint:  pip install acme" in said


def test_a_codec_with_more_tokens_than_the_model(
    text: Path, described: Callable[..., Path], refused: Callable[..., str]
) -> None:
    metadata = metadata_of(text / "model.onnx")
    metadata["codec"]["options"]["vocabulary"] += "Ω"
    size = metadata["vocab_size"]
    said = refused(described(metadata, text / "model.onnx"), "--prompt", "aΩ")
    assert f"damaged: codec: CharCodec.token_bytes has {size + 1} items for {size}" in said


@pytest.mark.parametrize(
    ("operator", "value", "said"),
    [
        ("Add", 10**6, "drew the token 1000"), ("Add", -(10**6), "drew the token -"),
        ("Tile", [2, 1], r"tokens of the shape \(2, 16\) for 1 rows"),
        ("Tile", [1, 2], r"tokens of the shape \(1, 32\) for 1 rows of at most 16"),
        ("Tile", [1, 0], r"tokens of the shape \(1, 0\)"),
        ("Reshape", [-1], "its output tokens is not that of gptkit's graphs"),
        ("Tile", [10**5, 10**9], "onnxruntime cannot run it"),
        ("Cast", None, "its output tokens is not that of gptkit's graphs"),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_graph_gives_is_checked(
    operator: str,
    value: Any,
    said: str,
    text: Path,
    refused: Callable[..., str],
    tmp_path: Path,
) -> None:
    """A complete file whose graph was written by somebody else."""
    model = onnx.load(text / "model.onnx")
    last = next(node for node in model.graph.node if "tokens" in node.output)
    last.output[:] = ["drawn"]
    if operator == "Cast":
        model.graph.node.append(helper.make_node("Cast", ["drawn"], ["tokens"], to=6))
        model.graph.output[0].type.tensor_type.elem_type = 6
    else:
        constant = onnx.numpy_helper.from_array(np.array(value), "value")
        model.graph.initializer.append(constant)
        model.graph.node.append(helper.make_node(operator, ["drawn", "value"], ["tokens"]))
        (batch, count) = model.graph.output[0].type.tensor_type.shape.dim
        batch.dim_param = count.dim_param = ""
    resealed(model, tmp_path / "other.onnx")
    assert re.search(f"other.onnx: .*{said}", refused(tmp_path / "other.onnx", "--tokens", 16))


def resealed(model: onnx.ModelProto, path: Path) -> None:
    """Write a model that was changed, with a proof that fits."""
    for entry in [entry for entry in model.metadata_props if entry.key == PROOF_KEY]:
        model.metadata_props.remove(entry)
    onnx.save(model, path)
    append_proof(path, [])


# Bundles.


@pytest.fixture
def bundle(text: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for path in (text / "bundle").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_bundle_may_be_moved(bundle: Path, cli: Command) -> None:
    assert cli("sample", bundle, "--tokens", 5).exit_code == 0
    assert cli("sample", bundle / "generate.onnx", "--tokens", 5).exit_code == 0


@pytest.mark.parametrize("named", ["", "generate.onnx"])
def test_weights_that_are_missing_swapped_or_damaged(
    named: str, bundle: Path, pixels: Path, refused: Callable[..., str]
) -> None:
    weights = bundle / "model.safetensors"
    whole = weights.read_bytes()
    random = np.random.default_rng(1)
    other = (pixels / "bundle" / "model.safetensors").read_bytes()
    flipped = []
    for place in random.integers(0, len(whole), 9):
        flipped.append(bytearray(whole))
        flipped[-1][place] ^= 1
    for contents in (b"", whole[:-1], whole[:100], whole + b"\0", other, *flipped):
        weights.write_bytes(contents)
        said = refused(bundle / named)
        assert (
            "model.safetensors: damaged: its sha256 differs from the one in generate.onnx" in said
        )
    weights.unlink()
    assert "its weights, model.safetensors, are missing" in refused(bundle / named)


@pytest.mark.parametrize("name", ["generate.onnx", "model.onnx", "decode.onnx"])
def test_graphs_of_a_bundle_that_are_missing_or_damaged(
    name: str, bundle: Path, refused: Callable[..., str], pixels: Path
) -> None:
    whole = (bundle / name).read_bytes()
    for contents in (b"", whole[:-1], b"\1" + whole[1:], whole[:5000] + b"!" + whole[5001:]):
        (bundle / name).write_bytes(contents)
        assert f"bundle/{name}: " in refused(bundle)
    (bundle / name).write_bytes((pixels / "bundle" / name).read_bytes())
    refused(bundle)
    (bundle / name).unlink()
    code = 2 if name == "generate.onnx" else 1
    said = refused(bundle, exit_code=code)
    assert name in said or name == "generate.onnx"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("model.onnx", "decode.onnx"),
        ("generate.onnx", "decode.onnx"),
        ("decode.onnx", "model.onnx"),
    ],
)
def test_a_graph_of_a_bundle_under_the_name_of_another(
    source: str, name: str, bundle: Path, refused: Callable[..., str]
) -> None:
    shutil.copy(bundle / source, bundle / name)
    assert "instead of step and decode" in refused(bundle)


@pytest.mark.skipif(sys.platform != "linux", reason="bytes are counted by Linux")
def test_the_weights_of_a_bundle_are_checked_in_one_reading(bundle: Path) -> None:
    graphs = [bundle / name for name in ("generate.onnx", "model.onnx", "decode.onnx")]
    sizes = [path.stat().st_size for path in graphs]
    weights = (bundle / "model.safetensors").stat().st_size
    before = psutil.Process().io_counters().read_chars
    check_files(*graphs)
    read = psutil.Process().io_counters().read_chars - before
    ends = sum(min(size, MAX_PROOF_BYTES) for size in sizes)  # where the proofs are looked for
    assert sum(sizes) + weights <= read < sum(sizes) + ends + 2 * weights


@pytest.mark.parametrize("name", ["model.onnx", "decode.onnx"])
def test_a_graph_that_does_not_draw_by_itself(
    name: str, bundle: Path, refused: Callable[..., str]
) -> None:
    said = refused(bundle / name, exit_code=2)
    assert "cannot be sampled by itself" in said
    assert "generate.onnx" in said


def test_errors_are_of_the_known_kinds(text: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        load_exported(tmp_path / "none.onnx")
    (tmp_path / "a.onnx").write_bytes((text / "model.onnx").read_bytes()[:-40])
    with pytest.raises(GptkitError) as error:
        load_exported(tmp_path / "a.onnx")
    assert error.value.exit_code == 1
