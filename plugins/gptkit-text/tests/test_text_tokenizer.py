import hashlib
import json
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from gptkit.plugin import DataError, DownloadError
from gptkit.testing import check_codec
from gptkit_text import tokenizer
from gptkit_text.bpe import PIECE, SAMPLED, few_words, sample_texts
from gptkit_text.codec import TokenizerCodec
from gptkit_text.tokenizer import TokenizerOption, TrainTokenizer, make_codec
from gptkit_text.tokenizer_file import byte_symbols

TEXTS = [f"The {n}th day of the month, {n * n} degrees; it's über-warm. 😀\n" for n in range(200)]


def train(size: int = 400, *, key: str = "days", **options: Any) -> TokenizerCodec:
    option = TrainTokenizer(train=size, **options)
    return make_codec(option, lambda: TEXTS, key=key, join=False)


def parsed(option: Any) -> Any:
    return TypeAdapter(TokenizerOption).validate_python(option)


def test_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parsed({"train": 4096}) == TrainTokenizer(train=4096, sample_mb=64)
    assert parsed("byte") == "byte"
    assert parsed("gpt2") == "gpt2"
    assert parsed("my/tokenizer.json") == tmp_path / "my/tokenizer.json"


@pytest.mark.parametrize(
    ("option", "fault"),
    [
        ({"train": 257}, "greater than or equal to 258"),
        ({"train": "many"}, "valid integer"),
        ({"trained": 500}, "Extra inputs"),
        ({"train": 500, "sample_mb": 0}, "greater than 0"),
        (5, "not a valid path"),
        ("", "is empty"),
    ],
)
def test_options_that_cannot_be(option: Any, fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        parsed(option)


def test_a_trained_vocabulary_has_exactly_the_size_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    codec = train(300)
    assert codec.vocab_size == 300
    assert codec.end == 299
    joined = make_codec(TrainTokenizer(train=300), lambda: TEXTS, key="days", join=True)
    assert joined.vocab_size == 300
    assert joined.end is None
    assert capsys.readouterr().err == ""
    check_codec(codec, prompts=TEXTS[:3], vocab_size=300)


def test_a_vocabulary_larger_than_the_text_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # learned, then from the cache
        codec = train(50_000)
        assert 257 < codec.vocab_size < 1000
        assert codec.end == codec.vocab_size - 1
        told = f"the text gave {codec.vocab_size:,} tokens, not the 50,000 of train"
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("texts", [[], [""], ["a"], ["\0" * 9]])
def test_hardly_any_text_gives_bytes(texts: list[str]) -> None:
    codec = make_codec(TrainTokenizer(train=258), lambda: texts, key=str(texts), join=False)
    check_codec(codec, prompts=["any"], vocab_size=codec.vocab_size)


TRAIN = """
import sys
from gptkit_text.bpe import train_bpe
texts = open(sys.argv[1], encoding="utf-8").read().split("\\f")
if sys.argv[2] == "back":
    texts.reverse()
print(train_bpe(texts, tokens=700, sample_bytes=10**6, end=True))
"""


def test_training_gives_the_same_bytes_everywhere(tmp_path: Path) -> None:
    words = [hashlib.blake2b(str(n % 997).encode(), digest_size=4).hexdigest() for n in range(9000)]
    texts = [" ".join(words[n : n + 90]) + "\n" + TEXTS[n // 90] for n in range(0, 9000, 90)]
    (tmp_path / "texts").write_text("\f".join(texts * 15), encoding="utf-8")  # more than 1 MB

    def trained(threads: int, seed: int, order: str) -> bytes:
        command = [sys.executable, "-c", TRAIN, str(tmp_path / "texts"), order]
        settings = {"RAYON_NUM_THREADS": str(threads), "PYTHONHASHSEED": str(seed)}
        return subprocess.check_output(command, env=os.environ | settings)

    first = trained(1, 0, "on")
    assert trained(2, 1, "back") == first


def test_the_same_tokens_are_learned_on_every_machine() -> None:
    pieces = b"\n".join(train(300).token_bytes)
    assert hashlib.sha256(pieces).hexdigest()[:16] == "b55cd2586708b931"


def test_a_sample_is_bounded_and_does_not_depend_on_the_order() -> None:
    texts = [text * (n % 7 + 1) for n, text in enumerate(TEXTS)] + TEXTS[:50]
    sample = sample_texts(texts, 5000)
    assert 4000 < sum(len(text.encode()) + PIECE for text in sample) <= 5000
    assert sorted(sample) == sorted(sample_texts(texts[::-1], 5000))
    assert sorted(sample_texts(texts, 10**6)) == sorted(texts)


def test_pieces_of_a_long_text_end_with_a_word() -> None:
    text = "some words\n" * 20_000 + "x" * 200_000
    pieces = SAMPLED.findall(text)
    assert "".join(pieces) == text
    assert max(map(len, pieces)) == 1 << 16
    assert all(piece.endswith(("some", "words")) for piece in pieces[:2])


def test_the_memory_of_a_sample_does_not_grow_with_the_text() -> None:
    def peak(texts: int) -> int:
        tracemalloc.start()
        sample_texts((f"{n} " + "some words " * 90_000 for n in range(texts)), 1_000_000)
        _, found = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return found

    assert peak(60) < 1.5 * peak(3)  # 60 MB and 3 MB of text


def test_a_tokenizer_is_trained_once(cache: Path) -> None:
    first = train()

    def missing() -> list[str]:
        raise AssertionError("read again")

    again = make_codec(TrainTokenizer(train=400), missing, key="days", join=False)
    assert again == first
    train(key="other")
    train(401)
    train(sample_mb=1)
    assert len(list(cache.rglob("tokenizer.json"))) == 4


@pytest.mark.parametrize("name", ["tokenizer.json", "sha256"])
@pytest.mark.parametrize("harm", ["remove", "cut", "garble"])
def test_a_damaged_tokenizer_in_the_cache_is_trained_anew(
    cache: Path, name: str, harm: str
) -> None:
    first = train()
    (path,) = cache.rglob(name)
    whole = path.read_bytes()
    if harm == "remove":
        path.unlink()
    elif harm == "cut":
        os.truncate(path, 30)
    else:
        path.write_bytes(whole[:9] + b"\xff" + whole[10:])
    assert train() == first
    (path,) = cache.rglob(name)
    assert path.read_bytes() == whole


def test_a_training_that_fails_leaves_nothing(cache: Path) -> None:
    def broken() -> Iterator[str]:
        yield "a text"
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        make_codec(TrainTokenizer(train=300), broken, key="x", join=False)
    assert [path for path in cache.rglob("*") if path.suffix != ".lock"] == [
        cache / "text",
        cache / "text/tokenizers",
    ]


def test_two_threads_train_one_tokenizer(cache: Path) -> None:
    found: list[TokenizerCodec] = []
    threads = [threading.Thread(target=lambda: found.append(train())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(codec == found[0] for codec in found)


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GPTKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="the cache cannot be written") as caught:
        train()
    assert "GPTKIT_CACHE" in str(caught.value.hint)


def from_path(path: Path) -> TokenizerCodec:
    return make_codec(path, list, key="", join=False)


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
def test_gpt2s_vocabulary_of_two_files(
    gpt2_folder: Path, tmp_path: Path, names: tuple[str, str]
) -> None:
    for name, old in zip(names, ("encoder.json", "vocab.bpe"), strict=True):
        windows = (gpt2_folder / old).read_bytes().replace(b"\n", b"\r\n")
        (tmp_path / name).write_bytes(windows)
    codec = from_path(tmp_path)
    assert codec.vocab_size == 50257
    assert codec.end == 50256
    assert codec.encode("Hello world") == [50256, 15496, 995]
    check_codec(codec, prompts=["Hello 😀"], vocab_size=50257)


def test_gpt2s_vocabulary_is_the_one_that_openai_publishes(gpt2_folder: Path, cache: Path) -> None:
    for name, (sha256, size) in tokenizer.GPT2_FILES.items():
        contents = (gpt2_folder / name).read_bytes()
        assert (hashlib.sha256(contents).hexdigest(), len(contents)) == (sha256, size)
        downloads = cache / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        (downloads / f"{sha256[:12]}-{name}").write_bytes(contents)
    assert make_codec("gpt2", list, key="", join=False) == from_path(gpt2_folder)


def test_gpt2s_vocabulary_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "OPENAI", "http://127.0.0.1:9/")
    with pytest.raises(DownloadError) as caught:
        make_codec("gpt2", list, key="", join=False)
    assert "encoder.json and vocab.bpe" in str(caught.value.hint)


def written(folder: Path, **changes: Any) -> Path:
    """A tokenizer.json of three letters, changed."""
    spec: dict[str, Any] = json.loads(make_codec("byte", list, key="", join=False).tokenizer_json())
    spec["model"] |= {"vocab": {"a": 0, "b": 1, "c": 2}}
    spec["added_tokens"] = []
    for name, value in changes.items():
        table = spec["model"] if name in ("vocab", "merges", "type", "dropout") else spec
        table[name] = value
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(spec))
    return path


def test_a_file_and_its_folder_are_the_same(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert from_path(path) == from_path(tmp_path)
    assert from_path(path).encode("cab") == [3, 2, 0, 1]


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file or folder"),
    "empty": (lambda path: path.touch(), "not a tokenizer.json: EOF"),
    "binary": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "not UTF-8"),
    "text": (lambda path: path.write_text("hello"), "not a tokenizer.json: expected"),
    "list": (lambda path: path.write_text("[1, 2]"), "not a tokenizer.json: invalid type"),
    "other": (lambda path: path.write_text('{"model": "gpt2"}'), "not a tokenizer.json"),
    "deep": (lambda path: path.write_text("[" * 100_000), "not a tokenizer.json"),
    "no tokens": (lambda path: written(path.parent, vocab={}), "the vocabulary is empty"),
    "beyond": (
        lambda path: written(path.parent, vocab={"a": 0, "b": 4_000_000_000}),
        "the token 'b' has id 4,000,000,000, but there are only 2 tokens",
    ),
    "negative": (lambda path: written(path.parent, vocab={"a": -1}), "not a tokenizer.json"),
    "twice": (
        lambda path: written(path.parent, vocab={"a": 0, "b": 1, "c": 1}),
        "the tokens 'b' and 'c' have the same id, 1",
    ),
    "merge": (lambda path: written(path.parent, merges=["a x"]), "Token `x` out of vocabulary"),
    "added": (
        lambda path: written(path.parent, added_tokens=[ADDED | {"id": 7, "content": "b"}]),
        "the token 'b' has two ids",
    ),
    "added beyond": (
        lambda path: written(path.parent, added_tokens=[ADDED | {"id": 9}]),
        "the token '<x>' has",
    ),
    "large": (lambda path: (path.touch(), os.truncate(path, 1 << 27)), "is larger than"),
    "pipe": (lambda path: os.mkfifo(path), "is a pipe"),
}
ADDED = {
    **{"id": 3, "content": "<x>", "special": True},
    **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_file_that_is_no_tokenizer(case: str, tmp_path: Path) -> None:
    harm, fault = FAULTS[case]
    path = tmp_path / "tokenizer.json"
    harm(path)
    with pytest.raises(DataError) as caught:
        from_path(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert fault in str(caught.value)
    assert "tokenizer.json" in str(caught.value.hint)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(DataError, match=r"has no tokenizer.json, nor encoder.json and vocab.bpe"):
        from_path(tmp_path)


@pytest.mark.parametrize(
    ("vocabulary", "merges"),
    [("", ""), ("[]", ""), ("{}", "a b"), ('{"a": 0}', "a a"), ('{"a": "b"}', ""), ("{", "{")],
)
def test_two_files_that_are_no_vocabulary(tmp_path: Path, vocabulary: str, merges: str) -> None:
    (tmp_path / "vocab.json").write_text(vocabulary)
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(DataError):
        from_path(tmp_path)


def test_an_end_token_that_texts_have_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, vocab={symbol: i for i, symbol in enumerate(byte_symbols())})
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "q"}')
    from_path(path)
    assert "this tokenizer changes texts: 'q' becomes ''" in capsys.readouterr().err


def test_a_damaged_tokenizer_config_is_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{eos")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: "):
        from_path(path)


@pytest.mark.parametrize("eos", ["b", {"content": "b"}])
def test_the_end_token_is_the_one_that_a_tokenizer_config_names(tmp_path: Path, eos: Any) -> None:
    path = written(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    codec = from_path(path)
    assert codec.end == 1
    assert codec.vocab_size == 3


def test_an_end_token_that_does_not_exist(tmp_path: Path) -> None:
    path = written(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    with pytest.raises(DataError, match="names the end token '<end>', which is no token"):
        from_path(path)


@pytest.mark.parametrize("contents", ["{}", "[]", '{"eos_token": null}', '{"eos_token": 5}'])
def test_a_tokenizer_config_without_an_end_token(tmp_path: Path, contents: str) -> None:
    path = written(tmp_path, added_tokens=[ADDED | {"content": "</s>"}])
    (tmp_path / "tokenizer_config.json").write_text(contents)
    assert from_path(path).end == 3


def test_a_tokenizer_that_cuts_pads_and_drops_does_so_no_more(tmp_path: Path) -> None:
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    pad = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    pad |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
    vocab = {"a": 0, "b": 1, "ab": 2}
    codec = from_path(
        written(
            tmp_path, truncation=cut, padding=pad, dropout=0.9, vocab=vocab, merges=[["a", "b"]]
        )
    )
    for _ in range(9):
        assert codec.encode("ababab") == [3, 2, 2, 2]


def test_a_text_of_ids_is_learned_from_a_bounded_number_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The library keeps every different word in memory."""
    monkeypatch.setattr("gptkit_text.bpe.MOST_DIFFERENT", 1500)
    ids = [" ".join(f"id{i}x{j}" for j in range(100)) for i in range(9)]
    assert list(few_words(ids)) == ids[:3]
    same = ["the same words"] * 500
    assert list(few_words(same)) == same
    clauses = [chr(0x4E00 + i) * 100 for i in range(99)]  # text without spaces
    assert list(few_words(clauses)) == clauses[:5]


def test_a_model_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(DataError, match=r"a\.gguf: is no tokenizer, but a model") as caught:
        make_codec(tmp_path / "a.gguf", list, key="", join=False)
    assert 'tokenizer = "RUN"' in str(caught.value.hint)
