"""docs/onnx.md and a bundle's README: their programs write what `gptkit sample` writes."""

import re
import shutil
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from typer.testing import Result

from gptkit.onnx.export.export import export
from gptkit.onnx.export.page import ONNXRUNTIME_WEB
from gptkit.onnx.runtime.generate_session import GenerateSession
from gptkit.onnx.runtime.model import load_exported
from gptkit.sampling.rule import uniforms
from tests.support import BYTES, execute, stop_tokens, train

MODEL = {"n_layer": 2, "n_head": 2, "n_embd": 32, "position": "rotary"}
ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/onnx.md").read_text()
WEB, NODE = f"onnxruntime-web@{ONNXRUNTIME_WEB}", "onnxruntime-node@1.30.0"
HEADERS = "com.github.asus4.onnxruntime@0.4.9"
"""An npm package that has ONNX Runtime's own C and C++ headers, those of 1.29."""
JSON_HEADERS = "nlohmann-json==3.12.0"
PROMPT = 'The lazy dög\'s "fox"\n'
TEXT = 'The quick brown fox\'s dög jumps over\tthe "lazy" dog \\ 🦊.\n' * 40
ASKED = ("--tokens", "300", "--temperature", "0.8", "--seed", "1")
"""What the programs of the page have in their text."""

Cli = Callable[..., Result]
Downloaded = Callable[..., Path]


def program(language: str, index: int = 0) -> str:
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return blocks[index]


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of text whose context is much shorter than what the programs draw."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    path = str(folder / "text.txt")
    return train(folder, {"use": "char-text", "path": path, "block_size": 24}, MODEL, steps=20)


@pytest.fixture(scope="module")
def model(text_run: Path) -> Path:
    return export(text_run, out=text_run / "model.onnx").path


@pytest.fixture(scope="module")
def stopping(text_run: Path) -> Path:
    """The model of a codec with stop tokens."""
    with stop_tokens(text_run, "🦊\\"):
        return export(text_run, out=text_run / "stopping.onnx").path


@pytest.fixture
def expected(model: Path, stopping: Path, cli: Cli) -> Callable[..., str]:
    """What `gptkit sample` writes after a prompt."""

    def text(prompt: str, path: Path = model) -> str:
        result = cli("sample", path, "--device", "cpu", "--prompt", prompt, *ASKED)
        assert result.exit_code == 0, result.output
        assert (len(result.stdout) < 300) == (path == stopping)
        return result.stdout

    return text


@pytest.fixture
def node(downloaded: Downloaded, tmp_path: Path) -> Callable[..., str]:
    """Runs a program in Node, in a folder, with a package installed there."""

    def call(package: str, source: str, *arguments: object, cwd: Path = tmp_path) -> str:
        command = ("npm", "install", "--ignore-scripts", "--no-audit", package)
        name = re.sub(r"[^\w.]", "-", package)
        installed = downloaded(name, lambda folder: execute(*command, cwd=folder))
        if not (cwd / "node_modules").exists():
            (cwd / "node_modules").symlink_to(installed / "node_modules")
        (cwd / "program.mjs").write_text(source, encoding="utf-8")
        return execute("node", "program.mjs", *arguments, cwd=cwd)

    return call


def python(source: str, *arguments: object, cwd: Path) -> str:
    """Runs a program that can import neither torch nor gptkit."""
    (cwd / "program.py").write_text(source, encoding="utf-8")
    start = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['gptkit'] = None; "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return execute(sys.executable, "-c", start, "program.py", *arguments, cwd=cwd)


@pytest.mark.parametrize("language", ["python", "js", "cpp", "csharp"])
def test_a_program_is_short_and_checks_its_prompt(language: str) -> None:
    lines = [line for line in program(language).splitlines() if line]
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 100
    assert re.search("never saw|unknown", program(language))


@pytest.mark.parametrize("prompt", [PROMPT, ""])
def test_python(
    model: Path, stopping: Path, expected: Callable[..., str], tmp_path: Path, prompt: str
) -> None:
    for path in (model, stopping):
        assert python(program("python"), path, prompt, cwd=tmp_path) == expected(prompt, path)


def test_a_program_names_what_the_model_never_saw(model: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"never saw \{'é'\}"):
        python(program("python"), model, "thé", cwd=tmp_path)


def test_the_page_has_the_right_random_numbers() -> None:
    spelled: dict[str, Any] = {}
    exec(program("python", 1), spelled)  # noqa: S102
    table = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    assert len(table) == 2
    for seed, *numbers in table:
        for draw, number in enumerate(numbers):
            u = uniforms(int(seed), draw, 1)[0]
            assert np.float32(number) == u == spelled["uniform"](int(seed), draw)
    for seed, draw, batch_size in ((2**63 - 1, 7, 3), (5, 10**6, 2)):
        u = uniforms(seed, draw, batch_size)
        row = [spelled["uniform"](seed, draw * batch_size + b) for b in range(batch_size)]
        assert u.tolist() == row


def test_the_page_names_every_input_and_every_field(model: Path) -> None:
    opened = GenerateSession(model, "cpu")
    for node in (*opened.session.get_inputs(), *opened.session.get_outputs()):
        shape = f" ({', '.join(node.shape)})" if node.shape else ""
        kind = {"tensor(int64)": "int64", "tensor(float)": "float32"}[node.type]
        assert re.search(rf"^\| `{node.name}`.*\| {kind}{re.escape(shape)} \|", PAGE, re.MULTILINE)
    for name in opened.metadata.model_dump():
        assert f"`{name}`" in PAGE or f"`{name}." in PAGE, name


def test_the_commands_of_the_page(text_run: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    shutil.copytree(text_run, tmp_path / "runs/sonnets")
    outputs = {}
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL):
        for command in block.splitlines():
            if "train recipes/" in command:
                assert (ROOT / command.split()[2]).is_file()
                continue
            command = command.replace("Shall I compare", "The")  # which this small model knows
            name, *arguments = re.findall(r'"([^"]*)"|(\S+)', command)
            assert "".join(name) == "gptkit"
            result = cli(*map("".join, arguments))
            assert result.exit_code == 0, (command, result.output)
            outputs[command] = result.stdout
    texts = [text for text in outputs.values() if text.startswith("The")]
    assert len(texts) == 2
    assert texts[0] == texts[1]  # from the file, and from the bundle
    package = (tmp_path / "page/package.json").read_text()
    assert f'"onnxruntime-web": "{ONNXRUNTIME_WEB}"' in package
    assert f"onnxruntime-web@{ONNXRUNTIME_WEB}" in PAGE


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [PROMPT, ""])
def test_javascript(
    model: Path,
    stopping: Path,
    expected: Callable[..., str],
    node: Callable[..., str],
    prompt: str,
) -> None:
    for path in (model, stopping):
        assert node(WEB, program("js"), path, prompt) == expected(prompt, path)
    with pytest.raises(AssertionError, match="the model never saw é"):
        node(WEB, program("js"), model, "thé")


@pytest.mark.slow
def test_javascript_without_a_browsers_limits(
    model: Path, stopping: Path, expected: Callable[..., str], node: Callable[..., str]
) -> None:
    source = program("js").replace('"onnxruntime-web"', '"onnxruntime-node"')
    for path in (model, stopping):
        assert node(NODE, source, path, PROMPT) == expected(PROMPT, path)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")
def test_cpp(
    model: Path,
    stopping: Path,
    expected: Callable[..., str],
    downloaded: Downloaded,
    tmp_path: Path,
) -> None:
    headers = downloaded(re.sub(r"\W", "-", f"headers-{HEADERS}-{JSON_HEADERS}"), fill_headers)
    (library,) = Path(ort.__file__).parent.glob("capi/libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / name).symlink_to(library)
    (tmp_path / "sample.cpp").write_text(program("cpp"), encoding="utf-8")
    execute(
        "g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "sample.cpp", "-o", "sample",
        f"-I{headers / 'include'}", "-L.", "-lonnxruntime", "-Wl,-rpath,.", cwd=tmp_path,
    )  # fmt: skip
    for prompt, path in product((PROMPT, ""), (model, stopping)):
        found = execute("./sample", path, prompt, cwd=tmp_path)
        assert found + "\n" == expected(prompt, path)
    with pytest.raises(AssertionError, match="unknown: é"):
        execute("./sample", model, "thé", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("dotnet"), reason="dotnet is not installed")
def test_csharp(model: Path, stopping: Path, expected: Callable[..., str], tmp_path: Path) -> None:
    execute("dotnet", "new", "console", "--output", ".", "--name", "sample", cwd=tmp_path)
    execute("dotnet", "add", "package", "Microsoft.ML.OnnxRuntime", cwd=tmp_path)
    (tmp_path / "Program.cs").write_text(program("csharp"), encoding="utf-8")
    for path in (model, stopping):
        found = execute("dotnet", "run", "--", path, PROMPT, cwd=tmp_path)
        assert found == expected(PROMPT, path)


def bundle_programs(bundle: Path) -> tuple[str, str, str]:
    """Python's, JavaScript's and gptkit's arguments, from a bundle's README."""
    readme = (bundle / "README.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^```(\w+)\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL))
    return blocks["python"], blocks["js"], blocks["sh"].removeprefix("gptkit sample . ")


@pytest.mark.slow
def test_the_programs_of_a_bundle_of_text(
    text_run: Path, cli: Cli, node: Callable[..., str], tmp_path: Path
) -> None:
    with stop_tokens(text_run, "🦊\\"):
        stopping = export(text_run, out=tmp_path / "stopping").path
    for bundle in (export(text_run, out=tmp_path / "bundle").path, stopping):
        in_python, in_js, arguments = bundle_programs(bundle)
        expected = cli("sample", bundle, *arguments.split(), "--tokens", 200).stdout
        assert (len(expected) < 200) == (bundle == stopping)
        assert python(in_python, cwd=bundle) == expected
        assert node(NODE, in_js, cwd=bundle) == expected


@pytest.mark.slow
def test_the_programs_of_a_bundle_of_bytes(
    distribution: Callable[..., Path], cli: Cli, node: Callable[..., str], tmp_path: Path
) -> None:
    distribution("acorn-bytes", BYTES, datasets="bytes = Bytes", codecs="bytes = ByteCodec")
    (tmp_path / "text").write_text("dög 🦊 吾輩は猫である。" * 200, encoding="utf-8")
    path = train(tmp_path, {"use": "bytes", "path": str(tmp_path / "text")}, MODEL, steps=20)
    bundle = export(path, out=tmp_path / "bundle").path
    in_python, in_js, arguments = bundle_programs(bundle)
    expected = cli("sample", bundle, *arguments.split(), "--tokens", 200).stdout
    assert "\ufffd" in expected
    assert python(in_python, cwd=bundle) == expected
    assert node(NODE, in_js, cwd=bundle) == expected


@pytest.mark.slow
@pytest.mark.parametrize("colors", [8, "rgb"])
def test_the_programs_of_a_bundle_of_images(
    cli: Cli, node: Callable[..., str], tmp_path: Path, colors: Any
) -> None:
    shapes = {"use": "cifar10", "source": "shapes", "size": 4, "colors": colors}
    path = train(tmp_path, shapes | {"class_conditional": True}, MODEL, steps=20)
    bundle = export(path, out=tmp_path / "bundle").path
    in_python, in_js, arguments = bundle_programs(bundle)
    assert cli("sample", bundle, *arguments.split()).exit_code == 0
    assert (tmp_path / "drawn.png").is_file()
    ids = [int(i) for i in cli("sample", bundle, *arguments.split()[:2], "--ids").stdout.split()]
    assert python(in_python, cwd=bundle) == ""
    pixels = load_exported(bundle).codec.decode_array(ids)
    assert (bundle / "drawn.ppm").read_bytes() == b"P6 4 4 255\n" + pixels.tobytes()
    assert [int(i) for i in node(NODE, in_js, cwd=bundle).split()] == ids[1:]


def fill_headers(folder: Path) -> None:
    """ONNX Runtime's and nlohmann's headers, without what else their packages hold."""
    include = folder / "include"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target")
    execute(*pip, folder / "pip", JSON_HEADERS)
    shutil.copytree(folder / "pip/nlohmann_json/include", include)
    packed = execute("npm", "pack", "--silent", HEADERS, cwd=folder).split()[-1]
    execute("tar", "xzf", packed, "--wildcards", "*/ios-arm64/*.h", cwd=folder)
    for header in folder.glob("package/**/ios-arm64/**/*.h"):
        shutil.copy(header, include)
    shutil.rmtree(folder / "package")
    (folder / packed).unlink()
