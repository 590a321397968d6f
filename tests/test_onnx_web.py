"""The page in a real browser: the tokens of the command line, and nothing from elsewhere."""

import http.server
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from gptkit.errors import UsageError
from gptkit.onnx.export.export import export
from gptkit.onnx.export.page import ONNXRUNTIME_WEB
from gptkit.onnx.runtime.generate_session import GenerateSession
from gptkit.onnx.runtime.model import load_exported
from gptkit.sampling.rule import SamplingOptions
from tests.support import BYTES, execute, stop_tokens, train

MODEL = {"n_layer": 2, "n_head": 2, "n_embd": 32, "position": "rotary"}
PACKAGES = (
    f"onnxruntime-web@{ONNXRUNTIME_WEB}",
    "puppeteer-core@24.43.1",
    "@sparticuz/chromium@147.0.2",  # the browser itself, packed
)
UNPACK = 'import c from "@sparticuz/chromium"; console.log(await c.executablePath())'
TEXT = 'The quick brown fox\'s dög jumps over\tthe "lazy" dog \\ 🦊.\n' * 40

Cli = Callable[..., Result]
Visit = Callable[..., dict[str, Any]]


@dataclass
class Site:
    """A web server for a folder, which is also the proxy of whoever looks elsewhere."""

    folder: Path
    requests: list[str] = field(default_factory=list)
    address: str = ""

    @property
    def foreign(self) -> list[str]:
        """What was asked for that is not on this server."""
        return [line for line in self.requests if not line.split()[1].startswith("/")]


class Recorder(http.server.SimpleHTTPRequestHandler):
    """Serves files; notes every request, and refuses those to other hosts."""

    def __init__(self, site: Site, *args: Any) -> None:
        self.site = site
        super().__init__(*args, directory=str(site.folder))

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        self.site.requests.append(self.requestline)
        if parsed and not self.path.startswith("/"):
            self.send_error(403)
            return False
        return parsed

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "site")
    site.folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Recorder, site)) as server:
        site.address = f"127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield site
        server.shutdown()


@pytest.fixture(scope="session")
def browser(downloaded: Callable[..., Path]) -> Path:
    """A folder with node_modules and Chromium."""

    def fill(folder: Path) -> None:
        install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", *PACKAGES]
        execute(*install, cwd=folder)
        unpack = ["node", "--input-type=module", "--eval", UNPACK]
        execute(*unpack, cwd=folder, env=os.environ | {"TMPDIR": str(folder)})

    return downloaded("-".join(PACKAGES).replace("/", "-"), fill)


@pytest.fixture
def visit(browser: Path, site: Site) -> Visit:
    """Opens a page of the site, and does there what `tests/onnx_page.mjs` can do."""
    if not (site.folder / "node_modules").exists():
        (site.folder / "node_modules").symlink_to(browser / "node_modules")

    def call(*actions: list[Any]) -> dict[str, Any]:
        script = (Path(__file__).parent / "onnx_page.mjs").read_text(encoding="utf-8")
        url = f"http://{site.address}/"
        command = ["node", "--input-type=module", "--eval", script, "--", str(browser / "chromium")]
        printed = execute(*command, site.address, url, json.dumps(actions), cwd=browser)
        found: dict[str, Any] = json.loads(printed)
        assert found["errors"] == []
        return found

    return call


@pytest.fixture(scope="module")
def text_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page for a model of text whose context is soon full."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    path = str(folder / "text.txt")
    text_run = train(folder, {"use": "char-text", "path": path, "block_size": 24}, MODEL, steps=20)
    return export(text_run, web=folder / "page").path.parent


def ids(result: Result) -> list[list[int]]:
    """What `gptkit sample --ids` printed."""
    assert result.exit_code == 0, result.output
    return [[int(token) for token in line.split()] for line in result.stdout.splitlines()]


def test_the_page_is_complete_and_names_what_it_needs(text_page: Path) -> None:
    html = (text_page / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"\w+:?//\w[^\s\"'`]*", html) == ["http://localhost:8000"]  # in a message
    package = json.loads((text_page / "package.json").read_text(encoding="utf-8"))
    assert package["dependencies"] == {"onnxruntime-web": ONNXRUNTIME_WEB}


def test_a_package_json_that_is_there_stays(text_page: Path, tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    for own in ("{}", "[]", "no JSON", '{"dependencies": {"react": "19"}}'):
        (tmp_path / "page/package.json").write_text(own)
        with pytest.raises(UsageError, match=r"its dependencies lack onnxruntime-web") as error:
            export(text_page.parent / "r", web=tmp_path / "page")
        assert f"npm install onnxruntime-web@{ONNXRUNTIME_WEB}" in str(error.value.hint)
        assert [path.name for path in (tmp_path / "page").iterdir()] == ["package.json"]
    own = '{"devDependencies": {"onnxruntime-web": "^1.20"}}'
    (tmp_path / "page/package.json").write_text(own)
    export(text_page.parent / "r", web=tmp_path / "page")
    assert (tmp_path / "page/package.json").read_text() == own
    assert (tmp_path / "page/index.html").is_file()


@pytest.mark.slow
def test_text_is_what_the_command_line_writes(
    text_page: Path, site: Site, visit: Visit, cli: Cli, tmp_path: Path
) -> None:
    shutil.copytree(text_page, site.folder, dirs_exist_ok=True)
    prompt = 'The lazy dög\'s "fox"\n'
    sampling = SamplingOptions(temperature=0.9, top_k=7, top_p=0.8, seed=2**62 + 1)
    settings = {"temperature": 0.9, "topK": 7, "topP": 0.8, "seed": str(sampling.seed)}
    found = visit(
        ["set", "prompt", prompt], ["set", "length", "200"], ["set", "seed", "5"], ["write"],
        ["set", "prompt", ""], ["write"],
        ["generate", {"starts": [[3, 1], [0, 2]], "count": 150, **settings}],
        ["screenshot", str(tmp_path / "page.png")],
        ["set", "length", "100000"], ["stop"],
        ["set", "prompt", "thé é"], ["write"],
        ["fetch", "http://example.com/anything"],
        ["inject", "http://example.com/script.js"], ["inject", "data:text/javascript,x = 1"],
    )  # fmt: skip
    assert found["title"] == "A GPT that writes"
    assert "dataset char-text" in found["facts"]
    prompted, empty, rows, stopped, unknown, *outside = (
        result for result in found["results"] if result is not None
    )
    model = site.folder / "model.onnx"
    asked = ("--tokens", 200, "--temperature", 0.8, "--seed", 5)
    for result, start in ((prompted, prompt), (empty, "")):
        expected = cli("sample", model, "--prompt", start, *asked).stdout
        assert result["text"] + "\n" == expected
        assert result["message"] == ""
        assert result["status"].startswith("200 tokens, ")
    assert prompted["command"].split("--tokens")[1].split() == (
        ["200", "--temperature", "0.8", "--seed", "5"]
    )
    drawn = GenerateSession(model, "cpu").generate(np.array([[3, 1], [0, 2]]), 150, sampling)
    assert rows == drawn.tolist()
    assert 0 < stopped < 100_000
    assert unknown["message"].startswith("The model never saw é\nIt knows tab newline space ")
    assert not unknown["shown"], "the result of an earlier request"
    assert prompted["shown"]
    assert prompted["options"] == ["--prompt", "--tokens 200", "--temperature 0.8", "--seed 5"]
    assert outside == ["failed"] * 3
    assert site.foreign == [], "the page's security policy lets no request leave"
    assert (tmp_path / "page.png").stat().st_size > 10_000


@pytest.mark.slow
def test_text_ends_where_the_command_line_ends_it(
    text_page: Path, site: Site, visit: Visit, cli: Cli
) -> None:
    with stop_tokens(text_page.parent / "r", "🦊\\"):
        export(text_page.parent / "r", web=site.folder)
    model, starts = site.folder / "model.onnx", [[3, 1], [0, 2], [5, 5], [9, 7]]
    found = visit(
        ["set", "prompt", "The"], ["write"],
        ["generate", {"starts": starts, "count": 150, "temperature": 1, "seed": "4"}],
        ["generate", {"starts": starts, "count": 150, "temperature": 1, "seed": "4",
                      "stopTokens": []}],
    )  # fmt: skip
    written, rows, endless = (result for result in found["results"] if result is not None)
    expected = cli("sample", model, "--prompt", "The", "--device", "cpu").stdout
    assert written["text"] + "\n" == expected
    assert written["status"].startswith(f"{len(expected) - 4} tokens, ")
    prompts, sampling = np.array(starts), SamplingOptions(seed=4)
    assert endless == GenerateSession(model, "cpu").generate(prompts, 150, sampling).tolist()
    stops = load_exported(model).metadata.tokens.stop_tokens
    ends = [next((i for i, t in enumerate(row) if t in stops), 150) for row in endless]
    assert rows == [row[:end] for row, end in zip(endless, ends, strict=True)]
    assert len(set(ends)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("colors", [8, "rgb"])
def test_pictures_are_what_the_command_line_draws(
    site: Site, visit: Visit, cli: Cli, tmp_path: Path, colors: Any
) -> None:
    shapes = {"use": "cifar10", "source": "shapes", "size": 6, "colors": colors}
    path = train(tmp_path, shapes | {"class_conditional": True}, MODEL, steps=20)
    export(path, web=site.folder)
    found = visit(
        ["set", "seed", "3"], ["set", "samples", "12"], ["write"],
        ["set", "start", "7"], ["set", "samples", "2"], ["write"],
    )  # fmt: skip
    each, chosen = (result for result in found["results"] if result is not None)
    model, codec = site.folder / "model.onnx", load_exported(site.folder / "model.onnx").codec
    for result, arguments in (
        (each, ("--samples", 12)),
        (chosen, ("--samples", 2, "--class", "ring")),
    ):
        rows = ids(cli("sample", model, *arguments, "--seed", 3, "--ids"))
        assert len(result["pictures"]) == len(rows)
        for picture, row in zip(result["pictures"], rows, strict=True):
            pixels = np.array(picture, np.uint8).reshape(6, 6, 4)
            assert (pixels[..., :3] == codec.decode_array(row)).all()
            assert (pixels[..., 3] == 255).all()
    assert "--class ring --samples 2" in chosen["command"]
    assert site.foreign == []


@pytest.mark.slow
def test_what_is_missing_is_said_in_the_page(
    text_page: Path, site: Site, visit: Visit, tmp_path: Path
) -> None:
    model = (text_page / "model.onnx").read_bytes()
    shutil.copy(text_page / "index.html", site.folder)
    assert "404" in visit()["message"]
    spoilt = bytearray(model)
    spoilt[len(model) // 2] ^= 1
    for broken in (b"", b"no model at all", model[:-100], bytes(spoilt)):
        (site.folder / "model.onnx").write_bytes(broken)
        found = visit()
        assert "damaged, or gptkit did not export it" in found["message"]
        assert found["title"] == "The model cannot run here"
    (site.folder / "node_modules").unlink()
    assert "npm install" in visit()["message"]


@pytest.mark.slow
def test_text_of_bytes_is_what_the_command_line_writes(
    distribution: Callable[..., Path], site: Site, visit: Visit, cli: Cli, tmp_path: Path
) -> None:
    """Characters of several tokens, and bytes that are no characters."""
    distribution("acorn-bytes", BYTES, datasets="bytes = Bytes", codecs="bytes = ByteCodec")
    (tmp_path / "text").write_text("dög 🦊 吾輩は猫である。" * 200, encoding="utf-8")
    path = train(tmp_path, {"use": "bytes", "path": str(tmp_path / "text")}, MODEL, steps=20)
    export(path, web=site.folder)
    found = visit(
        ["set", "length", "40"], ["set", "prompt", "🦊 吾輩"], ["write"],
        ["set", "prompt", ""], ["write"],
    )  # fmt: skip
    assert found["title"] == "A GPT that writes"
    assert "256 tokens" in found["facts"]
    results = [result for result in found["results"] if result is not None]
    for result, prompt in zip(results, ("🦊 吾輩", ""), strict=True):
        expected = cli("sample", site.folder / "model.onnx", "--prompt", prompt, "--tokens", 40)
        assert result["text"] + "\n" == expected.stdout
        assert "--tokens 40" in result["command"]


@pytest.mark.slow
def test_text_of_subwords_is_what_the_command_line_writes(
    site: Site, visit: Visit, cli: Cli, tmp_path: Path
) -> None:
    """An emoji is several tokens, the end token comes first, prompts have the same tokens."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    dataset = {"use": "text", "path": str(tmp_path / "text.txt"), "block_size": 24}
    path = train(tmp_path, dataset | {"tokenizer": {"train": 290}}, MODEL, steps=60)
    export(path, web=site.folder)
    model = site.folder / "model.onnx"
    codec = load_exported(model).codec
    texts = [
        TEXT,
        "",
        " don't  stop\r\n\t\u3000🦊🦊 ",
        "<|endoftext|>",
        "naïve 中文 12²",
        "zzz" * 50,
    ]
    found = visit(
        ["encode", texts],
        ["set", "length", "40"], ["set", "prompt", "The dög 🦊"], ["write"],
        ["set", "prompt", ""], ["write"],
    )  # fmt: skip
    encoded, *results = (result for result in found["results"] if result is not None)
    assert [[*codec.starts[0], *row] for row in encoded] == list(map(codec.encode, texts))
    for result, prompt in zip(results, ("The dög 🦊", ""), strict=True):
        expected = cli("sample", model, "--prompt", prompt, "--tokens", 40).stdout
        assert result["text"] + "\n" == expected
        assert "--tokens 40" in result["command"]
    assert site.foreign == []
