import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from gptkit.plugin import Data, DataError
from gptkit.testing import check_dataset
from gptkit_text import dataset, writer
from gptkit_text.codec import TokenizerCodec
from gptkit_text.dataset import Text
from gptkit_text.encode import is_validation
from gptkit_text.sources import TextSource

END = 256  # of single bytes


def load(**options: Any) -> Data:
    return Text.model_validate({"tokenizer": "byte", "processes": 1} | options).load()


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def numbered(count: int, *, name: str = "document") -> list[str]:
    return [f"{name} {i}: {'lorem ipsum ' * (i % 5)}" for i in range(count)]


def tokens(split: Any) -> list[int]:
    """All tokens of a split, by its first and last windows."""
    x, y = split[torch.arange(len(split))]
    return [*x[:, 0].tolist(), *x[-1, 1:].tolist(), int(y[-1, -1])]


def documents(split: Any) -> list[str]:
    """The documents of a split of single bytes."""
    found, text = list[str](), bytearray()
    stream = tokens(split)
    assert stream[0] == stream[-1] == END
    for token in stream[1:]:
        if token == END:
            found.append(text.decode())
            text.clear()
        else:
            text.append(token)
    return found


@pytest.mark.parametrize("order", ["sample", "shuffle"])
@pytest.mark.parametrize("mode", ["mask", "mark", "join"])
def test_it_keeps_the_contract(mode: str, order: str) -> None:
    options = {"tokenizer": {"train": 300}, "block_size": 32, "documents": mode, "order": order}
    data = check_dataset(Text.model_validate(options), prompts=["", "Shall I", "<|endoftext|>🙂"])
    assert data.document_start == (data.codec.stop_tokens[0] if mode == "mask" else None)
    assert bool(data.codec.stop_tokens) == (mode != "join")


def test_a_mixture_keeps_the_contract(tmp_path: Path) -> None:
    a, b = jsonl(tmp_path / "a.jsonl", numbered(90)), jsonl(tmp_path / "b.jsonl", numbered(70))
    sources = [{"path": str(a), "weight": 0.7}, {"path": str(b), "weight": 0.3, "name": "other"}]
    for order in ("sample", "shuffle"):
        check_dataset(
            Text.model_validate(
                {"sources": sources, "tokenizer": "byte", "block_size": 16, "order": order}
            )
        )


def test_the_sonnets_are_whole_documents() -> None:
    data = load(block_size=64)
    train, val = documents(data.train), documents(data.val)
    assert len(train) + len(val) == 154 and len(val) == 9
    assert sum(text.startswith("Shall I compare thee") for text in train + val) == 1
    assert sum(text.endswith("water cools not love.") for text in train + val) == 1


def test_the_end_token_begins_each_document_and_ends_the_last(tmp_path: Path) -> None:
    texts = ["first " * 9, "second " * 9, "<|endoftext|> is text " * 4]
    data = load(path=jsonl(tmp_path / "a.jsonl", texts), block_size=8, val_fraction=0.1)
    both = tokens(data.train) + tokens(data.val)
    expected = list[int]()
    for side in (False, True):
        mine = [text.encode() for text in texts if is_validation(text.encode(), 0.1) == side]
        expected += [token for text in mine for token in (END, *text)] + [END] * bool(mine)
    assert both == expected


def test_joined_documents_have_a_line_feed_between_them(tmp_path: Path) -> None:
    texts = numbered(200)
    path = jsonl(tmp_path / "a.jsonl", texts)
    data = load(path=path, block_size=8, documents="join", val_fraction=0.2)
    for split, side in ((data.train, False), (data.val, True)):
        mine = [text for text in texts if is_validation(text.encode(), 0.2) == side]
        assert bytes(tokens(split)).decode() == "\n".join(mine)


def test_more_files_move_no_document_to_the_other_side(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    jsonl(folder / "b.jsonl", numbered(150))
    before = load(path=folder, block_size=8, val_fraction=0.2)
    jsonl(folder / "a.jsonl", numbered(100, name="other"))
    (folder / "c.md").write_text("# One more\n")
    after = load(path=folder, block_size=8, val_fraction=0.2)
    for old, new in ((before.train, after.train), (before.val, after.val)):
        assert set(documents(old)) < set(documents(new))
    assert before.sha256 != after.sha256
    assert not set(documents(after.train)) & set(documents(after.val))


def test_the_share_of_validation_is_about_what_was_asked_for(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", numbered(2000))
    for fraction in (0.05, 0.5, 0.9):
        data = load(path=path, block_size=8, val_fraction=fraction)
        assert len(documents(data.val)) / 2000 == pytest.approx(fraction, abs=0.03)


def test_the_end_of_a_single_document_is_for_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my.txt").write_text("abcdefghij" * 100)
    data = load(path=tmp_path / "my.txt", block_size=16, val_fraction=0.1)
    train, val = tokens(data.train), tokens(data.val)
    assert train + val == [END, *b"abcdefghij" * 100, END]
    assert len(val) == 101
    said = capsys.readouterr().err
    assert "my.txt: too few documents to take whole ones for validation: its last 101" in said


def test_a_text_without_a_window_is_refused(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("short")
    with pytest.raises(DataError, match=r"my\.txt: too short for block_size 16: 6 tokens") as e:
        load(path=tmp_path / "my.txt", block_size=16)
    assert "use more text" in str(e.value.hint)
    (tmp_path / "my.txt").write_text("a few words more " * 40)
    with pytest.raises(DataError, match="647 tokens for training and 35 for validation") as e:
        load(path=tmp_path / "my.txt", block_size=64)
    assert "set block_size to 34 or less" in str(e.value.hint)


def test_windows_lie_across_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "a.jsonl", numbered(120))
    whole = load(path=path, block_size=24, val_fraction=0.2)
    expected = [split[torch.arange(len(split))] for split in (whole.train, whole.val)]
    for shard in (7, 24, 25, 1000):
        monkeypatch.setattr(writer, "SHARD", shard)
        monkeypatch.setenv("GPTKIT_CACHE", str(tmp_path / f"cache{shard}"))
        data = load(path=path, block_size=24, val_fraction=0.2)
        sizes = [p.stat().st_size for p in tmp_path.glob(f"cache{shard}/**/train-*.bin")]
        assert max(sizes) == 2 * shard and sum(sizes) == 2 * (len(whole.train) + 24)
        for split, (x, y) in zip((data.train, data.val), expected, strict=True):
            found = split[torch.arange(len(split))]
            assert torch.equal(found[0], x) and torch.equal(found[1], y)
            mixed = torch.randperm(len(split))[:9]
            assert torch.equal(split[mixed][0], x[mixed])


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", numbered(60))
    vocabulary = {f"w{i}": i for i in range(70_000)} | {word: 70_000 + i for i, word in enumerate(
        ["document", "lorem", "ipsum", ":", *map(str, range(10))])}  # fmt: skip
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
    nothing = dict.fromkeys(("normalizer", "post_processor", "truncation", "padding", "decoder"))
    split = {"type": "Whitespace"}
    spec = nothing | {"version": "1.0", "model": model, "pre_tokenizer": split, "added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    data = load(path=path, tokenizer=str(tmp_path / "tokenizer.json"), block_size=8)
    assert max(tokens(data.train)) >= 70_000
    (file,) = tmp_path.glob("cache/**/train-00000.bin")
    assert np.fromfile(file, "<u4")[: len(tokens(data.train))].tolist() == tokens(data.train)


def test_a_list_of_paths_and_numbers_in_braces(tmp_path: Path) -> None:
    for i in range(3):
        jsonl(tmp_path / f"part-{i:02}.jsonl", [f"{i} " * 40])
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x.txt").write_text("x " * 40)
    paths = [str(tmp_path / "more"), str(tmp_path / "part-{01..02}.jsonl")]
    data = load(path=paths, block_size=8, val_fraction=0.1)
    text = bytes(token for token in tokens(data.train) + tokens(data.val) if token != END)
    assert text.split() == [b"x"] * 40 + [b"1"] * 40 + [b"2"] * 40


def test_a_window_is_a_part_of_the_stream_wherever_it_begins(tmp_path: Path) -> None:
    a, b = jsonl(tmp_path / "a.jsonl", numbered(90)), jsonl(tmp_path / "b.jsonl", numbered(70))
    sources = [{"path": str(a)}, {"path": str(b)}]
    data = load(sources=sources, block_size=16, val_fraction=0.3)
    stream = tokens(data.val)
    assert len(data.val) == len(stream) - 16
    x, y = data.val[torch.arange(len(data.val))]
    for start in range(len(data.val)):
        assert x[start].tolist() == stream[start : start + 16]
        assert y[start].tolist() == stream[start + 1 : start + 17]


@pytest.fixture
def mixture(tmp_path: Path) -> Iterator[dict[str, Any]]:
    a = jsonl(tmp_path / "a.jsonl", ["a" * 40] * 50)
    b = jsonl(tmp_path / "b.jsonl", ["b" * 30] * 99)
    yield {
        "sources": [{"path": str(a), "weight": 3}, {"path": str(b), "weight": 1, "name": "bees"}],
        "block_size": 8,
        "documents": "join",
        "val_fraction": 0.05,
    }


@pytest.mark.parametrize("order", ["sample", "shuffle"])
def test_a_mixture_is_drawn_by_weight_and_counted(mixture: dict[str, Any], order: str) -> None:
    data = load(**mixture, order=order)
    counts = {"a": 0, "b": 0}
    for step in range(10):
        told = {"tokens_a": 8.0 * counts["a"], "tokens_bees": 8.0 * counts["b"]}
        assert data.train.metrics(7, step, 6) == told
        x, _ = data.train[data.train.indices(7, step, 6)]
        for window in x.tolist():
            letters = set(map(chr, window)) - {"\n"}
            assert len(letters) == 1
            counts[letters.pop()] += 1
    assert counts == {"a": 45, "b": 15}


def test_a_source_has_the_text_key_of_the_data_set(tmp_path: Path) -> None:
    for name, key in {"a": "body", "b": "words"}.items():
        rows = "".join(json.dumps({key: f"{name} {i} text"}) + "\n" for i in range(60))
        (tmp_path / f"{name}.jsonl").write_text(rows)
    paths = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    sources = [{"path": paths[0]}, {"path": paths[1], "text_key": "words"}]
    data = load(sources=sources, text_key="body", block_size=8, val_fraction=0.3)
    assert {text[:1] for text in documents(data.val)} == {"", "a", "b"}  # "" between the sources


def test_one_source_is_not_counted() -> None:
    assert load(block_size=64).train.metrics(1, 5, 8) == {}


def test_a_source_that_changes_leaves_the_others_encoded(
    tmp_path: Path, mixture: dict[str, Any]
) -> None:
    load(**mixture)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/**/train-*.bin")}
    jsonl(tmp_path / "b.jsonl", ["bb" * 30] * 99)
    load(**mixture)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/**/train-*.bin")}
    assert len(before) == 2 and len(after) == 3
    assert before.items() <= after.items()


def test_a_tokenizer_of_a_text_that_changed_meanwhile_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, made = tmp_path / "a.txt", dataset.make_codec
    one, other = "the cat sat on the mat. " * 400, "zebra quux frobnicate " * 400

    def late(*args: Any, **options: Any) -> TokenizerCodec:
        path.write_text(other)
        return made(*args, **options)

    options = {"path": str(path), "tokenizer": {"train": 300}, "block_size": 16}
    path.write_text(one)
    with monkeypatch.context() as patch, pytest.raises(DataError, match="changed while it was"):
        patch.setattr(dataset, "make_codec", late)
        load(**options)
    path.write_text(one)
    assert b"zebra" not in b"".join(load(**options).codec.token_bytes)


def test_samples_are_drawn_as_by_other_data_sets(tmp_path: Path) -> None:
    data = load(block_size=64)
    drawn = np.random.Philox(key=np.array([5, 9], np.uint64)).random_raw(4) % len(data.train)
    assert data.train.indices(5, 9, 4).tolist() == drawn.tolist()


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"path": "a", "hf": "a/b"}, "only one of path and hf"),
        ({"path": "a", "sources": [{"path": "b"}]}, "only one of path and sources"),
        ({"sources": [{"weight": 1.0}]}, "either path or hf"),
        ({"sources": [{"path": "a", "hf": "b/c"}]}, "either path or hf"),
        ({"sources": [{"path": "a", "weight": 0.0}]}, "greater than 0"),
        ({"sources": [{"path": "x/a.txt"}, {"path": "y/a.txt"}]}, 'two sources have the name "a"'),
        ({"path": []}, "at least 1 item"),
        ({"path": ""}, "empty"),
        ({"val_fraction": 1.0}, "less than 1"),
        ({"order": "random"}, "'sample' or 'shuffle'"),
        ({"tokenizer": {"train": 100}}, "greater than or equal to 258"),
        ({"processes": 0}, "greater than 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        Text.model_validate(options)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ({"hf": "a/b"}, "b"),
        ({"hf": "a/b@v1"}, "b"),
        ({"hf": "a/b@refs/convert/parquet"}, "b"),
        ({"hf": "a/b@refs/convert/parquet/de/x"}, "x"),
        ({"hf": "a/wiki/20231101.en"}, "20231101.en"),
        ({"path": "x/a b.jsonl"}, "a_b"),
        ({"path": "x/a.txt", "name": "c"}, "c"),
    ],
)
def test_a_source_without_a_name_has_that_of_its_place(source: dict[str, Any], name: str) -> None:
    assert TextSource.model_validate(source).label == name


def test_paths_become_absolute_and_addresses_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    text = Text.model_validate({"path": ["a/b.txt", "~/c", "https://x.org/{000..199}.jsonl.zst"]})
    assert text.path == ["/a/b.txt", str(Path.home() / "c"), "https://x.org/{000..199}.jsonl.zst"]
    assert Text(path=Path("a")).path == "/a"  # type: ignore[arg-type]


def test_a_folder_is_searched_for_the_endings_that_are_named(tmp_path: Path) -> None:
    """So a folder of code can be trained on, with files in it that are no data."""
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    (folder / "package.json").write_text('{"name": "no text"}')
    (folder / "src" / "a.PY").write_text("print(1)\n" * 40)
    (folder / "README.md").write_text("words " * 40)
    with pytest.raises(DataError, match=r'package.json: row 1: no key "text"') as caught:
        load(path=str(folder))
    assert 'endings = [".md"]' in str(caught.value.hint)
    data = load(path=str(folder), endings=[".py"], block_size=8)
    assert b"print(1)" in bytes(token for token in tokens(data.train) if token < END)
    mixed = [{"path": str(folder), "endings": [".md"]}, {"path": str(folder), "name": "code"}]
    found = tokens(load(sources=mixed, endings=[".py"], block_size=8).train)
    assert {b"words", b"print(1)"} <= set(bytes(token for token in found if token < END).split())
    with pytest.raises(DataError, match=r"no file in this folder ends in one of \.rs"):
        load(path=str(folder), endings=[".rs"])
    for wrong in ("py", ".", "a.py", "./b", ". py"):
        with pytest.raises(ValidationError, match=r'should be an ending such as "\.py"'):
            load(path=str(folder), endings=[wrong])
    (folder / "x.C++").write_text("int main;" * 99)
    found = tokens(load(path=str(folder), endings=[".C++"], block_size=8).train)
    assert b"main" in bytes(token for token in found if token < END)
