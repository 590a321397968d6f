"""`gptkit sample` with stops, with a prompt on standard input, and with files of prompts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gptkit.cli.app import app
from gptkit.onnx.export.export import export
from tests.support import BYTES, stir, train

Cli = Callable[..., Result]
MODEL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "position": "rotary"}
PROMPTS = ["Shall I compare", "", "thee to a summer's day? Thou art more", "a", " ", "Rough winds "]
RULE = "\n----------\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run "r" and its "r.onnx"; no test changes them."""
    folder = tmp_path_factory.mktemp("text")
    run = stir(train(folder, {"use": "char-text", "block_size": 16}, MODEL), scale=0.3)
    export(run, out=folder / "r.onnx")
    return folder


@pytest.fixture(params=["r", "r.onnx"])
def draw(request: pytest.FixtureRequest, folder: Path, cli: Cli) -> Callable[..., str]:
    """What `gptkit sample` prints for the run or the file."""

    def call(*options: object) -> str:
        done = cli("sample", folder / request.param, "--device", "cpu", *options)
        assert done.exit_code == 0, done.stderr
        return done.stdout

    return call


def test_a_stop_text_ends_the_sample(draw: Callable[..., str]) -> None:
    options = ("--prompt", "Shall", "--seed", 3, "--max-new-tokens", 60)
    whole = draw(*options)
    assert whole.startswith("Shall")
    assert len(whole) == 5 + 60 + 1
    stop = whole[20:23]
    expected = whole[: whole.index(stop, 5)]
    assert draw(*options, "--stop", "never this", "--stop", stop) == expected + "\n"
    several = draw(*options, "-n", 3, "--stop", "e").removesuffix("\n").split(RULE)
    endless = draw(*options, "-n", 3).removesuffix("\n").split(RULE)
    assert several == ["Shall" + text[5:].partition("e")[0] for text in endless]
    assert (
        draw(*options, "--ids", "--stop", stop).split()
        == draw(*options, "--ids").split()[: len(expected)]
    )


def test_standard_input_is_the_prompt_as_it_is(folder: Path, draw: Callable[..., str]) -> None:
    options = ["sample", str(folder / "r"), "--tokens", "5", "--device", "cpu", "--prompt"]
    for prompt in ("two lines\nand a newline\n", "none"):
        found = CliRunner().invoke(app, [*options, "-"], input=prompt.encode())
        assert found.stdout == draw(*options[2:], prompt)
    assert "standard input is not UTF-8" in CliRunner().invoke(app, [*options, "-"], b"\xff").stderr


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_each_line_of_a_file_is_drawn_as_it_is_alone(
    draw: Callable[..., str], tmp_path: Path, end: str
) -> None:
    Path("prompts.txt").write_bytes((end.strip(" ") or "\n").join(PROMPTS).encode() + end.encode())
    options = ("--tokens", 25, "--seed", 9, "--stop", "e", "--keep", 0.9)
    assert draw("--prompts", "prompts.txt", "--out", "drawn.txt", *options) == ""
    alone = [draw("--prompt", prompt, *options).removesuffix("\n") for prompt in PROMPTS]
    assert Path("drawn.txt").read_text() == RULE.join(alone) + "\n"


def test_rows_of_json_have_seeds_and_tokens_of_their_own(draw: Callable[..., str]) -> None:
    rows = [
        {"prompt": prompt, "id": f"é{i}", **more}
        for i, prompt in enumerate(PROMPTS)
        for more in ({}, {"seed": 2**63 - 1}, {"tokens": i + 1, "seed": i})
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["--prompts", "rows.jsonl", "--out", "out.jsonl", "--tokens", 9, "--seed", 4]
    for ids in ([], ["--ids"]):
        draw(*asked, *ids)
        found = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
        assert [{k: v for k, v in row.items() if k != "sample"} for row in found] == rows
        assert ids or "é0" in Path("out.jsonl").read_text()
        for row in found[:: 4 if ids else 1]:
            given = ("--tokens", row.get("tokens", 9), "--seed", row.get("seed", 4))
            alone = draw("--prompt", row["prompt"], *given, *ids).removesuffix("\n")
            assert row["sample"] == (list(map(int, alone.split())) if ids else alone)


@pytest.mark.parametrize(
    ("name", "contents", "said"),
    [
        ("p.txt", "fine\nthé\n", "p.txt:2: prompt: the model never saw 'é'"),
        ("p.txt", "th\udce9", "p.txt: cannot be read: it is not UTF-8\nhint:  save it as UTF-8"),
        ("p.txt", "", "p.txt: holds no prompts"), ("p.txt", None, "p.txt: cannot be read: No such"),
        ("p.jsonl", '{"prompt": "a"}\n\n', "p.jsonl:2: "),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "a", "tokens": 0}', "p.jsonl:2: tokens: "),
        ("p.jsonl", f'{{"prompt": "a", "tokens": {2**63}}}', "p.jsonl:1: tokens: "),
        ("p.jsonl", '{"prompt": 1}', "p.jsonl:1: prompt: "), ("p.jsonl", "[]", "p.jsonl:1: "),
        ("p.jsonl", '{"prompt": "a", "top_k": 3}', "p.jsonl:1: top_k: is no option of a line"),
        ("p.jsonl", '{"prompt": "a", "max-new-tokens": 3}', "p.jsonl:1: max-new-tokens: is no"),
        ("p.jsonl", '{"seed": 1}', "p.jsonl:1: prompt: "),
        ("p.jsonl", '{"prompt": "a", "seed": -1}', "p.jsonl:1: seed: "),
        ("p.jsonl", '{"prompt": "a", "class": "x"}', "p.jsonl:1: this model knows no classes"),
    ],
)  # fmt: skip
def test_a_wrong_file_of_prompts(
    name: str, contents: str | None, said: str, folder: Path, cli: Cli
) -> None:
    if contents is not None:
        Path(name).write_text(contents, errors="surrogateescape")
    out = Path(f"out{Path(name).suffix}")
    done = cli("sample", folder / "r", "--prompts", name, "--out", out)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {said}")
    assert "hint:" in done.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ("p.txt --prompt a --out o.txt", "leave --prompt and --samples out"),
        ("p.txt --samples 2 --out o.txt", "leave --prompt and --samples out"),
        ("p.txt", "add --out FILE"), ("p.jsonl", "add --out FILE.jsonl"),
        ("p.txt --samples 2", "add --out FILE, and leave --prompt and --samples out"),
        ("- --out o.txt", "name files"), ("p.txt --out -", "name files"),
        ("p.txt --out o.jsonl", "--out o.txt"), ("p.jsonl --out o.txt", "--out o.jsonl"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_a_file_of_prompts(
    options: str, hint: str, folder: Path, cli: Cli
) -> None:
    done = cli("sample", folder / "r", "--prompts", *options.split())
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.endswith(f"hint:  {hint}\n")


def test_images_and_other_files(
    distribution: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    entries = {"datasets": "bytes = Bytes", "codecs": "bytes = ByteCodec\nsvg = SvgCodec"}
    distribution("acorn-bytes", BYTES, **entries)
    Path("text").write_bytes(b"abcdefghij" * 500)
    train(tmp_path, {"use": "bytes", "path": "text", "svg": True}, MODEL)
    Path("p.txt").write_text("a\nbc\n")
    Path("p.jsonl").write_text('{"prompt": "a"}\n')
    assert cli("sample", "r", "--prompts", "p.txt", "--out", "w.svg", "--tokens", 3).exit_code == 0
    alone = cli("sample", "r", "--prompt", "bc", "--out", "alone.svg", "--tokens", 3)
    assert alone.exit_code == 0
    assert Path("w-2.svg").read_bytes() == Path("alone.svg").read_bytes()
    for options, said in (
        (
            ["--prompts", "p.jsonl", "--out", "x"],
            "p.jsonl: samples of this model are .svg files, which JSON",
        ),
        (["--prompt", "-"], "--prompt -: prompts of this model are no text"),
        (["--stop", "a"], "only text can end at a stop text"),
    ):
        done = cli("sample", "r", "--out", "x.svg", *options)
        assert done.exit_code == 2
        assert said in done.stderr
    assert cli("sample", "r", "--prompts", "p.jsonl", "--out", "x.jsonl", "--ids").exit_code == 0
    assert json.loads(Path("x.jsonl").read_text())["prompt"] == "a"
