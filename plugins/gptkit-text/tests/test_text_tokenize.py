"""`gptkit tokenize`: its numbers, what a terminal and a pipe get, and its warnings."""

import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from functools import partial
from hashlib import blake2b
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from typer.testing import CliRunner

import gptkit
from gptkit_text.concerns import concerns
from gptkit_text.report import as_json
from gptkit_text.survey import Survey, survey
from gptkit_text.tokenize import app
from gptkit_text.visible import visible

TALE = "the cat and the dog sat on a red mat while old men told long stories of war"
HOSTILE = (
    "a\x1b[31mred\x1b]0;title\x07 \x9b2J \u202eback\u2028 [bold]b[/bold] :smile: <|endoftext|>\n"
)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def documents(count: int) -> list[str]:
    """Different texts of a few words."""
    words = TALE.split()
    return [
        " ".join(words[(i * i + 3 * j) % len(words)] for j in range(20)) + f" {i}\n"
        for i in range(count)
    ]


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def recipe(folder: Path, **options: Any) -> Path:
    """A recipe with these options of the data set."""
    options = {"block_size": 8, "tokenizer": "byte"} | options
    sources = options.pop("sources", [])
    lines = ["[dataset]", 'use = "text"', *(f"{k} = {toml(v)}" for k, v in options.items())]
    for source in sources:
        lines += ["[[dataset.sources]]", *(f"{k} = {toml(v)}" for k, v in source.items())]
    path = folder / "recipe.toml"
    path.write_text("\n".join(lines))
    return path


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(v)}" for key, v in value.items()) + "}"
    return json.dumps(str(value) if isinstance(value, Path) else value)


def surveyed(folder: Path, **options: Any) -> Survey:
    dataset = gptkit.dataset(recipe(folder, **options))
    return survey(dataset)  # type: ignore[arg-type]


def warnings(folder: Path, **options: Any) -> str:
    return "\n".join(concerns(surveyed(folder, **options)))


def command(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    """`gptkit tokenize` in a process of its own, in pipes."""
    return subprocess.run(
        [sys.executable, "-m", "gptkit", "tokenize", *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | env,
        timeout=120,
    )


def on_terminal(*arguments: object, **env: str) -> str:
    """What `gptkit tokenize` writes to a terminal of 80 columns."""
    ours, theirs = os.openpty()
    base = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "gptkit", "tokenize", *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=base | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40"} | env,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            shown += chunk
    except OSError:  # the end of a terminal
        pass
    os.close(ours)
    assert process.wait(timeout=120) == 0
    return shown.decode().replace("\r\n", "\n")


def test_numbers_are_those_of_the_library(tmp_path: Path) -> None:
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    texts = [*documents(60), *(f"Zwölf 🦊 {i}" for i in range(5))]
    library.train_from_iterator(texts, trainer)
    library.save(str(tmp_path / "tokenizer.json"))
    path = recipe(
        tmp_path,
        path=jsonl(tmp_path / "corpus.jsonl", texts),
        tokenizer=tmp_path / "tokenizer.json",
        val_fraction=0.3,
    )

    done = command(path, "--json")

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    held = [int.from_bytes(blake2b(t.encode(), digest_size=8).digest(), "big") < 0.3 * 2**64
            for t in texts]  # fmt: skip
    sides = {"train": [t for t, val in zip(texts, held, strict=True) if not val],
             "val": [t for t, val in zip(texts, held, strict=True) if val]}  # fmt: skip
    counts = {}
    for name, side in sides.items():
        ids = [token for text in side for token in library.encode(text).ids]
        counts[name] = Counter(ids)
        split = found["splits"][name]
        assert split["documents"] == len(side)
        assert split["bytes"] == sum(len(text.encode()) for text in side)
        assert split["tokens"] == len(ids) + len(side) + 1  # end tokens
        assert split["bytes_per_token"] == pytest.approx(split["bytes"] / split["tokens"])
        assert split["windows"] == (split["tokens"] - 1) // 8
    size = library.get_vocab_size()
    assert (found["vocab_size"], found["end"]) == (size + 1, size)
    never = [i for i in range(size) if not counts["train"][i]]
    tokens = found["tokens"]
    assert tokens["never"]["size"] + tokens["never_single"]["size"] == len(never)
    untaught = [i for i in never if counts["val"][i]]
    assert {token["id"] for token in tokens["untaught"]["first"]} == set(untaught)
    rarest = [token["count"] for token in tokens["rarest"]["first"]]
    assert rarest == sorted(counts["train"][i] for i in range(size) if i not in never)[:100]
    for token in tokens["longest"]["first"]:
        text = library.decode([token["id"]])
        assert "\ufffd" in text or text.encode() == bytes.fromhex(token["bytes"])
        assert token["count"] == counts["train"][token["id"]]
    longest = max(len(library.decode([i]).encode()) for i in range(size) if i not in never)
    assert len(tokens["longest"]["first"][0]["bytes"]) == 2 * longest
    begin = [token["id"] for token in found["passage"]]
    first = library.encode(sides["train"][0]).ids
    assert begin[: len(first) + 2] == [size, *first, size]


def test_training_finds_its_text_encoded(tmp_path: Path, cache: Path) -> None:
    path = recipe(
        tmp_path, path=jsonl(tmp_path / "a.jsonl", documents(50)), tokenizer={"train": 280}
    )
    assert CliRunner().invoke(app, [str(path)]).exit_code == 0
    shards = {p: p.stat().st_mtime_ns for p in cache.rglob("*.bin")}

    data = gptkit.dataset(path).load()

    assert shards == {p: p.stat().st_mtime_ns for p in cache.rglob("*.bin")}
    assert {part.path for part in data.train.segments} <= set(shards)  # type: ignore[attr-defined]


def test_hostile_text_never_steers_a_terminal(tmp_path: Path) -> None:
    texts = [f"{HOSTILE}{i} {'x' * 20}" for i in range(40)]
    path = recipe(
        tmp_path,
        path=jsonl(tmp_path / "a.jsonl", texts),
        tokenizer={"train": 400},
        val_fraction=0.3,
    )

    shown = on_terminal(path)

    plain = COLOURS.sub("", shown)
    assert all(c.isprintable() or c == "\n" for c in plain)
    assert len(plain.splitlines()) <= 40
    assert r"\x1b" in plain
    assert r"\u202e" in plain
    assert "[/bold]" in plain
    assert ":smile:" in plain
    passage = shown.partition(r"\x1b")[0].splitlines()[-1] + shown.partition(r"\x1b")[2]
    backgrounds = re.findall(r"\x1b\[30;48;5;(\d+)m", passage)
    assert set(backgrounds) == {"153", "223"}
    assert "|" not in COLOURS.sub("", passage).replace("<|endoftext|>", "")


def test_no_color_marks_the_borders(tmp_path: Path) -> None:
    path = recipe(tmp_path, path=jsonl(tmp_path / "a.jsonl", documents(40)), val_fraction=0.3)

    shown = on_terminal(path, NO_COLOR="1")

    assert "48;5" not in shown
    assert "|t|h|e| |" in shown


def test_a_pipe_gets_marks_and_whole_lines(tmp_path: Path) -> None:
    texts = ["🦊 says hello\nand goodbye, Zwölf times " + "on and on " * 30, *documents(30)]
    path = recipe(tmp_path, path=jsonl(tmp_path / "a.jsonl", texts), val_fraction=0.01)

    done = CliRunner().invoke(app, [str(path)])

    assert done.exit_code == 0
    assert "\x1b" not in done.output
    assert "|<F0>|<9F>|<A6>|<8A>| |s|a|y|s| |" in done.stdout
    assert "|o|\\n\n|a|n|d|" in done.stdout
    assert "|Z|w|<C3>|<B6>|l|f|" in done.stdout
    assert "warning: a.jsonl" not in done.stdout


def test_a_character_of_several_tokens_in_the_passage(tmp_path: Path) -> None:
    texts = [f"🦊🦊🐻 {text}" for text in documents(40)]
    found = surveyed(
        tmp_path,
        path=jsonl(tmp_path / "a.jsonl", texts),
        tokenizer={"train": 262},
        val_fraction=0.3,
    )

    pieces = [found.codec.token_bytes[token] for token in found.passage]
    shown = [found.shown(token) for token in found.passage]

    assert any(1 < len(piece) < 4 and not _is_text(piece) for piece in pieces)
    halves = re.compile("<([0-9A-F]{2}(?: [0-9A-F]{2})*)>")
    for piece, text in zip(pieces, shown, strict=True):
        if piece and not _is_text(piece):
            (found_hex,) = halves.findall(text)
            assert bytes.fromhex(found_hex) in piece


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        (b" the", " the"),
        ("Zwölf 中文 🦊".encode(), "Zwölf 中文 🦊"),
        (b"\xf0\x9f", "<F0 9F>"),
        (b"\xa6 a\xc3", "<A6> a<C3>"),
        (b"\n\t\x1b[0m\x00", r"\n\t\x1b[0m\x00"),
        ("\u202e\u200d\xa0\ufeff".encode(), r"\u202e\u200d\xa0\ufeff"),
        ("\U000e0001".encode(), r"\U000e0001"),
        (b"\xed\xa0\x80", "<ED A0 80>"),  # half of a surrogate pair, which is no UTF-8
        (b"", ""),
    ],
)
def test_visible(piece: bytes, shown: str) -> None:
    assert visible(piece) == shown


def test_every_two_bytes_are_visible_and_harmless() -> None:
    pieces = [visible(bytes([a, b])) for a in range(256) for b in range(256)]
    assert all(piece.isprintable() for piece in pieces)


def test_mixture(tmp_path: Path) -> None:
    texts = documents(90)
    one, two = jsonl(tmp_path / "one.jsonl", texts[:30]), jsonl(tmp_path / "two.jsonl", texts[30:])
    path = recipe(tmp_path, sources=[{"path": one, "weight": 3.0}, {"path": two}], val_fraction=0.2)

    done = CliRunner().invoke(app, [str(path)])
    found = json.loads(CliRunner().invoke(app, [str(path), "--json"]).stdout)

    first, second = found["sources"]
    assert (first["name"], second["name"]) == ("one", "two")
    assert (first["share"], second["share"]) == (0.75, 0.25)
    total = first["train"]["tokens"] + second["train"]["tokens"]
    assert found["splits"]["train"]["tokens"] == total
    assert first["epochs"] == pytest.approx(0.75 * total / first["train"]["tokens"])
    assert sum(s[side]["documents"] for s in found["sources"] for side in ("train", "val")) == 90
    assert re.search(r"^one +\d+ .* 75\.0% ", done.stdout, re.MULTILINE)


def test_one_screen_for_many_sources(tmp_path: Path) -> None:
    sources = [
        {"path": jsonl(tmp_path / f"source{i}.jsonl", [f"{t} {i}" for t in documents(30)])}
        for i in range(20)
    ]
    path = recipe(tmp_path, sources=sources, tokenizer={"train": 300}, val_fraction=0.3)

    done = CliRunner().invoke(app, [str(path)])

    assert len(done.stdout.splitlines()) <= 40
    assert "12 more" in done.stdout
    assert len(json.loads(CliRunner().invoke(app, [str(path), "--json"]).stdout)["sources"]) == 20


def test_one_document(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(documents(40)))
    size = path.stat().st_size

    found = as_json(surveyed(tmp_path, path=path, val_fraction=0.25))

    assert found["splits"]["train"]["documents"] == 1
    assert found["splits"]["val"]["documents"] is None
    tokens = [found["splits"][name]["tokens"] for name in ("train", "val")]
    assert tokens[0] == sum(tokens) * 3 // 4
    assert sum(found["splits"][name]["bytes"] for name in ("train", "val")) == size
    text = path.read_bytes()
    train = Counter(text[: found["splits"]["train"]["bytes"]])
    assert {t["id"]: t["count"] for t in found["tokens"]["rarest"]["first"]} == train
    assert f"book: one document only: its last {tokens[1]:,} tokens" in found["warnings"][0]


def test_too_few_documents(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "few.jsonl", documents(3))
    assert "few: too few documents to take whole ones" in warnings(
        tmp_path, path=path, val_fraction=0.01
    )


def test_documents_of_both_splits(tmp_path: Path) -> None:
    texts = documents(60)
    alike = [text.upper().replace(" ", ", ") for text in texts]  # equal but for case and marks

    found = warnings(tmp_path, path=jsonl(tmp_path / "a.jsonl", [*texts, *alike]), val_fraction=0.3)
    alone = warnings(tmp_path, path=jsonl(tmp_path / "b.jsonl", texts), val_fraction=0.3)

    share = re.search(r"([\d.]+)% of the documents for validation are in training", found)
    assert share
    assert 30 < float(share[1]) < 100
    assert "are in training" not in alone


def test_tokens_that_training_never_sees(tmp_path: Path) -> None:
    texts = documents(60)
    held = next(t for t in texts if int.from_bytes(
        blake2b(f"{t}Ω".encode(), digest_size=8).digest(), "big") < 0.3 * 2**64)  # fmt: skip
    texts.remove(held)

    found = warnings(
        tmp_path, path=jsonl(tmp_path / "a.jsonl", [*texts, f"{held}Ω"]), val_fraction=0.3
    )

    assert 'in validation, and never in training: 2 tokens: "<A9>", "<CE>"' in found


def test_a_vocabulary_that_is_too_large(tmp_path: Path) -> None:
    ends = ("mp", "nd", "st", "ll", "rk", "sh", "ng", "pt", "ck", "x")
    words = [f"{a}{b}{end}" for a in "bcdfghkl" for b in "aeiou" for end in ends]
    rows = [" ".join(words[i::step]) for step in (10, 8, 5) for i in range(step)]
    options = {"path": jsonl(tmp_path / "a.jsonl", rows), "val_fraction": 0.3}

    large = warnings(tmp_path, tokenizer={"train": 600}, **options)
    right = warnings(tmp_path, tokenizer={"train": 262}, **options)

    assert "the vocabulary is large for this text" in large
    assert "tokenizer = { train = 512 } suits it" in large
    assert "the vocabulary is large" not in right


def test_a_tokenizer_that_does_not_know_the_text_is_told(tmp_path: Path) -> None:
    words = {"[UNK]": 0, "document": 1, "<|endoftext|>": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[UNK]", "<|endoftext|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = jsonl(tmp_path / "a.jsonl", documents(40))
    told = warnings(tmp_path, path=path, tokenizer=tmp_path / "tokenizer.json", val_fraction=0.3)
    assert re.search(r'"\[UNK\]" is 9\d% of all tokens in training', told)


def test_join_has_no_stop_token(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", documents(40))
    joined = surveyed(tmp_path, path=path, val_fraction=0.3, documents="join")
    assert any("no end token" in line for line in concerns(joined))
    assert as_json(joined)["end"] is None
    assert joined.train.tokens == joined.train.bytes  # of single bytes
    marked = surveyed(tmp_path, path=path, val_fraction=0.3, documents="mark")
    assert list(concerns(marked)) == []


def test_a_text_that_is_too_short_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Hello, world!")

    done = CliRunner().invoke(app, [str(recipe(tmp_path, path=path, block_size=64))])

    assert done.exit_code == 0
    assert "|H|e|l|l|o|" in done.stdout
    assert "warning: a training will refuse this text: " in done.stderr
    assert "too short for block_size 64" in done.stderr


def test_the_first_shard_of_a_remote_text(tmp_path: Path) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    texts = documents(80)
    for i in range(2):
        jsonl(folder / f"{i}.jsonl", texts[i * 40 : i * 40 + 40])
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{{0..1}}.jsonl"
        done = CliRunner().invoke(app, [str(recipe(tmp_path, path=address, val_fraction=0.3))])
        server.shutdown()

    assert done.exit_code == 0, done.exception
    assert "The first of 2 shards" in done.stdout
    shown = re.findall(r"^(?:train|val) +(\d+) ", done.stdout, re.MULTILINE)
    assert sum(map(int, shown)) == 40


def test_another_data_set_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chars.toml"
    path.write_text('[dataset]\nuse = "char-text"\n')

    done = command(path)

    assert done.returncode == 2
    assert not done.stdout
    assert "chars.toml: its data set is CharText" in done.stderr
    assert 'hint:  gptkit tokenize is for recipes with [dataset] use = "text"' in done.stderr


def test_a_recipe_that_is_wrong_is_refused(tmp_path: Path) -> None:
    done = command(recipe(tmp_path), "--set", "dataset.block_size=0")
    assert done.returncode == 2
    assert "--set dataset.block_size: should be greater than 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_it_and_imports_nothing() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "gptkit", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert "tokenize" in done.stdout
    imported = re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE)
    assert "gptkit.cli.app" in imported
    assert not {"gptkit_text", "torch", "numpy", "tokenizers"} & set(imported)


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass
