"""Codecs: what the core makes of texts, images and other files, with foreign codecs as examples."""

import json
import math
import os
import random
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from typer.testing import Result

import gptkit
from gptkit.codec import Codec, ImageCodec, PromptError, TextCodec
from gptkit.conformance.format import Alphabet
from gptkit.errors import PluginError
from gptkit.model.gpt import GPT
from gptkit.onnx.export.foreign_configs import tokenizer_contents
from gptkit.onnx.export.legend import make_legend
from gptkit.onnx.export.readme import readme
from gptkit.onnx.runtime.metadata import Metadata, Tokens
from gptkit.plugin import Data, DataError, TokenFile
from gptkit.recipe.codec_record import CodecRecord
from gptkit.recipe.options import GPTConfig
from gptkit.sampling.samples import RULE, SampleRequest, Samples
from gptkit.sampling.stops import Stops
from gptkit.testing import LetterCodec
from gptkit.training.preview import previewer
from tests.conftest import TINY
from tests.support import BYTES

Cli = Callable[..., Result]
JAPANESE = "吾輩は猫である。"


class Pieces(TextCodec):
    """Pieces of text that need not be whole characters, as in byte-pair encoding."""

    contract: ClassVar[int] = 1
    pieces: tuple[bytes, ...]

    @property
    def token_bytes(self) -> Sequence[bytes]:
        return self.pieces

    def encode(self, prompt: str) -> list[int]:
        return [0]


class Flag(ImageCodec):
    """Three columns, two rows."""

    contract: ClassVar[int] = 1
    palette: tuple[tuple[int, int, int], ...] = ((0, 0, 0), (255, 255, 255))

    @property
    def width(self) -> int:
        return 3

    @property
    def height(self) -> int:
        return 2

    @property
    def colors(self) -> Sequence[tuple[int, int, int]]:
        return self.palette

    def encode(self, prompt: str) -> list[int]:
        return [*self.starts[0], *map(int, prompt)]

    def decode(self, tokens: Sequence[int]) -> bytes:
        return bytes(tokens)

    def sheet(self, samples: Sequence[Sequence[int]], *, prompt: str = "", kept: int = 0) -> bytes:
        return b"|".join(map(bytes, samples))


@pytest.fixture
def train(
    distribution: Callable[..., Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Trains a model of a Japanese text's bytes into the folder "r"."""
    folder = distribution(
        "acorn-bytes",
        BYTES,
        datasets="bytes = Bytes",
        codecs="bytes = ByteCodec\nsvg = SvgCodec",
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    (tmp_path / "text").write_text(JAPANESE * 250, encoding="utf-8")
    recipe = """
        dataset = {use = "bytes", path = "text", svg = SVG}
        model = {n_layer = 1, n_head = 2, n_embd = 64, position = "rotary"}
        train = {steps = STEPS, learning_rate = 5e-3, eval_batches = 1, device = "cpu"}
        callbacks = [{use = "log", sample_tokens = 20}]
    """

    def call(*, steps: int = 120, svg: bool = False) -> None:
        text = recipe.replace("STEPS", str(steps)).replace("SVG", str(svg).lower())
        (tmp_path / "r.toml").write_text(text)
        done = cli("train", "r.toml", "--out", "r")
        assert done.exit_code == 0, done.stderr

    return call


def data_with(codec: Any) -> Data:
    """Loaded data of 26 token ids with this codec."""
    split = Alphabet()
    return Data(split, split, codec, vocab_size=26, block_size=8)


def letters(**attributes: Any) -> Codec:
    """A codec of the letters whose class says these things in another way."""
    made: Codec = type("Mine", (LetterCodec,), {"__module__": __name__, **attributes})()
    return made


@pytest.mark.parametrize(
    ("attributes", "fault", "hint"),
    [
        ({"contract": 2}, "codec Mine is written for contract 2; this gptkit has", "fit together"),
        ({"stop_tokens": 25}, "Mine.stop_tokens should be a tuple of token ids, got 25", "(END,)"),
        ({"stop_tokens": [25]}, "Mine.stop_tokens should be a tuple of", "(END,)"),
        ({"stop_tokens": ("z",)}, "Mine.stop_tokens should hold token ids, got 'z' (str)", "int"),
        ({"stop_tokens": (26,)}, "Mine.stop_tokens should hold ids below vocab_size, 26", "27"),
        ({"encode": lambda self, prompt: []}, 'encode("") should be a list of at least', "newline"),
        (
            {"encode": lambda self, prompt: "a"},
            'encode("") should be a list of at least',
            "newline",
        ),
        ({"encode": lambda self, prompt: [-1]}, 'encode("") should hold ids below', "0 .. vocab"),
        ({"model_dump_json": lambda self: "{"}, "cannot hold its fields", "finite"),
        ({"starts": [[0], [99]]}, "Mine.starts[1] should hold ids below vocab_size, 26", "100"),
    ],
)
def test_a_wrong_codec_is_refused_when_the_data_is_loaded(
    attributes: Any, fault: str, hint: str
) -> None:
    with pytest.raises(PluginError) as caught:
        data_with(letters(**{"contract": 1, **attributes}))
    assert fault in str(caught.value)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "caf\udce9", b"\xff", object()])
def test_a_codec_that_no_checkpoint_can_hold_is_refused_before_training(value: object) -> None:
    class Odd(LetterCodec):
        contract = 1
        more: Any = None

    data_with(Odd(more=[1, {"a": None}]))
    with pytest.raises(PluginError, match="they do not survive JSON"):
        data_with(Odd(more=value))


def test_a_codec_that_declares_no_contract_is_refused_before_training() -> None:
    with pytest.raises(PluginError, match="codec Mine declares no contract"):
        gptkit.trainer(TINY, data=data_with(letters()))
    with pytest.raises(PluginError, match=r"Data\.codec should be a codec, got <class"):
        data_with(LetterCodec)


def test_a_property_of_codecs_may_be_an_attribute_of_the_class() -> None:
    ended = letters(contract=1, stop_tokens=(25,), length=9)
    more = type("More", (type(ended),), {"stop_tokens": property(lambda self: (24, 25))})()
    small = type("Small", (Flag,), {"width": 1, "contract": 1})()
    assert (ended.stop_tokens, more.stop_tokens, more.length) == ((25,), (24, 25), 9)
    assert small.length == 1 + 2
    assert ended.model_dump() == {}
    assert data_with(ended).codec == ended


def test_a_prompt_that_is_no_text_is_refused() -> None:
    codec = letters(encode=lambda self, prompt: list(prompt.encode()))
    for place, said in ((None, "prompt: should"), ("f.txt:2", "f.txt:2: prompt: should")):
        with pytest.raises(PromptError, match=rf"^{said} be UTF-8, got '\\udcff'"):
            SampleRequest("\udcff", place=place).starts(codec)


def test_codecs_of_equal_fields_are_equal_whatever_they_have_cached() -> None:
    class Cached(Pieces):
        contract = 1

        @cached_property
        def table(self) -> Any:
            return np.zeros(3)

    first, second = Cached(pieces=(b"a",)), Cached(pieces=(b"a",))
    assert first.table is not second.table
    assert first == second
    assert hash(first) == hash(second)
    assert first != Cached(pieces=(b"b",))
    assert first != Pieces(pieces=(b"a",))


def test_a_character_of_several_tokens_is_shown_when_it_is_complete(
    train: Callable[..., None], cli: Cli, tmp_path: Path
) -> None:
    train()
    assert cli("export", "r", "--out", "r.onnx").exit_code == 0
    asked = ["--prompt", "吾", "--tokens", "45", "--temperature", "0"]
    for model in ("r", "r.onnx"):
        assert cli("sample", model, *asked, "--out", "drawn.txt").exit_code == 0
        written = (tmp_path / "drawn.txt").read_bytes()
        assert written.decode() == 2 * JAPANESE + "\n"
        command = [sys.executable, "-m", "gptkit", "sample", model, *asked]
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
            assert process.stdout
            parts = list(iter(lambda: os.read(process.stdout.fileno(), 1 << 16), b""))
        assert b"".join(parts) == written
        assert [part.decode() for part in parts]  # each of them has whole characters


def test_a_model_with_a_long_vocabulary_is_sampled_resumed_and_begun_with(
    cli: Cli, tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Its codec has a file of its own."""
    letters = "".join(map(chr, range(0x4E00, 0x4E00 + 20_000)))
    (tmp_path / "text").write_text(letters * 2, encoding="utf-8")
    recipe = tiny_recipe(
        dataset={"use": "char-text", "path": str(tmp_path / "text"), "block_size": 4}
    )
    assert cli("train", recipe, "--out", "r").exit_code == 0
    for engine in ("torch", "auto"):
        asked = ("--prompt", "一", "--tokens", "3", "--engine", engine)
        assert cli("sample", "r", *asked).stdout.startswith("一")
    assert cli("eval", "r").exit_code == 0
    assert cli("export", "r").exit_code == 0
    assert cli("train", recipe, "--out", "s", "--from", "r").exit_code == 0
    assert cli("resume", "r", "--set", "train.steps=50").exit_code == 0
    (tmp_path / "r/checkpoints/last/codec.json").write_bytes(b"{}")
    refused = cli("sample", "r")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "codec.json: damaged or incomplete" in refused.stderr


def test_a_loss_in_bits_per_byte(
    cli: Cli, tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Of characters with one byte to four."""
    text = "aé吾🦊" * 100
    (tmp_path / "text").write_text(text, encoding="utf-8")
    path = str(tmp_path / "text")
    recipe = tiny_recipe(dataset={"use": "char-text", "path": path, "block_size": 4})
    assert cli("train", recipe, "--out", "r").exit_code == 0
    found = json.loads(cli("eval", "r", "--json").stdout)
    assert found["tokens"] == 39  # the last 40 characters, but for the first of them, a
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2) * 39 / 99)
    assert f"bits per byte   {found['bits_per_byte']:.4f}" in cli("eval", "r").stdout


def test_other_files_are_numbered(train: Callable[..., None], cli: Cli, tmp_path: Path) -> None:
    train(steps=1, svg=True)
    assert next((tmp_path / "r/samples").iterdir()).name == "step-00000001.svg"
    asked = ["sample", "r", "--tokens", 2, "--out"]
    assert cli(*asked, "one.svg").exit_code == 0
    assert (tmp_path / "one.svg").read_bytes().startswith(b"<svg>0a")
    several = cli(*asked, "w.svg", "--samples", 2)
    assert several.exit_code == 0
    assert several.stderr.endswith("\nwritten: w-1.svg to w-2.svg\n")
    drawn = [path.read_bytes() for path in sorted(tmp_path.glob("w*.svg"))]
    assert [each.count(b"<svg>") for each in drawn] == [1, 1]
    assert drawn[0] != drawn[1]
    (tmp_path / "v-2.svg").mkdir()
    assert "v-2.svg: is a folder" in cli(*asked, "v.svg", "--samples", 2).stderr
    assert "--out w.svg" in cli(*asked, "w.txt", "--samples", 2).stderr
    assert "2 samples are 2 .svg files" in cli(*asked, "/dev/null", "--samples", 2).stderr
    assert cli(*asked, "/dev/null").exit_code == 0
    assert "samples are .svg files" in cli("sample", "r").stderr


def test_pieces_of_text_are_the_text() -> None:
    """Also where characters begin in the prompt, and where bytes are no text at all."""
    generator = random.Random(1)
    text = "aé吾🦊".encode() * 3
    for length in (1, 2, 3, 5):
        pieces = [text[i : i + length] for i in range(0, len(text), length)]
        codec = Pieces(pieces=(*pieces, b"", b"\xff", b"\xe5", b"\xf0\x9f"))
        for _ in range(50):
            ids = [generator.randrange(len(codec.pieces)) for _ in range(20)]
            samples = [
                Samples.start("", [ids[:3]], Stops(), ([i] for i in ids[3:])) for _ in range(2)
            ]
            shown = list(samples[0].pieces(codec))
            assert "".join(shown).encode() == samples[1].contents(codec)[0]
            assert all(shown)
        whole = Samples.start("", [[0]], Stops(), ([i] for i in range(1, len(pieces))))
        assert "\ufffd" not in "".join(whole.pieces(codec))


class Word(LetterCodec):
    """Texts of ten letters."""

    @property
    def length(self) -> int:
        return 10


@pytest.mark.parametrize(
    ("codec", "tokens", "prompt", "sizes"),
    [
        (LetterCodec(), 35, "", [36]),  # with its first letter
        (Word(), 35, "", [10, 10, 10]),
        (Word(), 500, "", [10] * 16),
        (Word(), 35, "abc", [10]),
    ],
)
def test_a_preview_has_as_many_short_texts_as_fit(
    codec: TextCodec, tokens: int, prompt: str, sizes: list[int]
) -> None:
    config = GPTConfig(n_layer=1, n_head=1, n_embd=8, vocab_size=26, block_size=16)
    drawn = previewer(GPT(config), codec)(tokens, 1, prompt).decode().split(RULE)
    assert [len(text) for text in drawn] == sizes
    assert drawn[0].startswith(prompt or "a")


def test_several_texts_are_in_one_file_with_a_line_between_them() -> None:
    samples = Samples.start("", [[0], [1]], Stops(), iter([[2, 3], [4, 5]]))
    assert samples.contents(LetterCodec()) == [b"ace\n----------\nbdf"]


def test_an_image_has_a_size_a_start_for_each_class_and_a_prompt() -> None:
    flag = Flag(classes=("day", "night"))
    assert (flag.starts, flag.length, flag.lossless) == ([[2], [3]], 7, False)
    assert flag.start("", label="night") == [3]
    assert flag.start("010101", keep=0.5, label="day") == [2, 0, 1, 0]
    with pytest.raises(PromptError, match="nite") as caught:
        flag.start("", label="nite")
    assert caught.value.hint == 'known: day, night; did you mean "night"?'
    with pytest.raises(PromptError, match="knows no classes"):
        Flag().start("", label="day")
    rgb = Flag(palette=())
    assert (rgb.starts, rgb.length, rgb.lossless) == ([[256]], 19, True)
    assert Samples.start("", [[2], [2]], Stops(), iter([[0, 1]])).contents(flag) == [
        b"\x02\x00|\x02\x01"
    ]


@pytest.mark.parametrize(
    ("codec", "legend"),
    [
        (Pieces(pieces=(b"", b"a", "é".encode())), {"text": ["", "a", "é"]}),
        (Pieces(pieces=(b"a", b"\xc3", b"\xa9")), {"bytes": ["YQ==", "ww==", "qQ=="]}),
        (
            Flag(classes=("x",)),
            {"width": 3, "height": 2, "colors": [[0, 0, 0], [255, 255, 255]], "classes": ["x"]},
        ),
        (Flag(palette=()), {"width": 3, "height": 2, "channels": 3, "classes": []}),
    ],
)
def test_the_legend_of_an_exported_file(codec: Codec, legend: dict[str, Any]) -> None:
    assert json.loads(json.dumps(make_legend(codec))) == legend
    if "bytes" in legend:
        assert b"".join(map(b64decode, legend["bytes"])).decode() == "aé"


def test_a_legend_has_the_pattern_of_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pieces, "word_pattern", r"\p{L}+|\P{L}", raising=False)
    for pieces, key in (((b"a", b"\xc3"), "bytes"), ((b"a", b"b"), "text")):
        legend = make_legend(Pieces(pieces=pieces))
        assert legend is not None
        assert legend.keys() == {key, "pattern"}
        assert legend["pattern"] == r"\p{L}+|\P{L}"


class Tokenized(Pieces):
    """Pieces that a Hugging Face tokenizer knows."""

    contract: ClassVar[int] = 1
    json_text: str

    def tokenizer_json(self) -> str:
        return self.json_text


def test_every_token_of_text_has_bytes() -> None:
    split = TokenFile(Path(__file__), "uint8", start=0, stop=100, block_size=4)
    codec = Pieces(pieces=(b"a", b"b"))
    Data(split, split, codec, vocab_size=2, block_size=4)
    with pytest.raises(DataError, match=r"Pieces\.token_bytes has 2 items for 3 token ids"):
        Data(split, split, codec, vocab_size=3, block_size=4)


def test_the_tokenizer_of_a_bundle_is_the_codecs_own_or_made_of_characters() -> None:
    own = Tokenized(pieces=(b"a", b"ab"), json_text='{"model": {"type": "BPE"}}')
    assert tokenizer_contents(own) == {"model": {"type": "BPE"}}
    vocabulary = tokenizer_contents(Pieces(pieces=(b"b", b"a")))
    assert vocabulary
    ids = vocabulary["model"]["vocab"]
    assert (ids["b"], ids["a"]) == (0, 1)
    assert min(id_ for symbol, id_ in ids.items() if symbol not in "ab") == 2  # the other bytes
    for pieces in ((b"ab",), (b"", b"a"), (b"\xc3", b"a")):
        assert tokenizer_contents(Pieces(pieces=pieces)) is None
    assert tokenizer_contents(Flag()) is None
    for wrong in ("{", "[]"):
        with pytest.raises(PluginError, match=r"Tokenized.tokenizer_json is no JSON"):
            tokenizer_contents(Tokenized(pieces=(b"a",), json_text=wrong))


@pytest.mark.parametrize(
    ("pieces", "start", "prompt"),
    [
        (["\n", "a"], [0], '[legend["text"].index(character) for character in prompt] or [0]'),
        (["a", ""], [1], '[1] + [legend["text"].index(character) for character in prompt]'),
        (["a", "ab"], [0], "[0]"),
    ],
)
def test_the_program_of_a_bundle_reads_a_prompt_if_it_can(
    pieces: list[str], start: list[int], prompt: str
) -> None:
    tokens = Tokens(
        starts=[start], length=None, temperature=1, suffix=".txt", legend={"text": pieces}
    )
    about = Metadata(
        graph="generate", dtype="float32", opset=21, gptkit="0.6.0", block_size=4,
        config=GPTConfig(vocab_size=2, block_size=4),
        vocab_size=2, codec=CodecRecord(name="a", distribution="b", options={}), tokens=tokens,
        dataset="a", step=1, val_loss=None, checkpoint_sha256="",
    )  # fmt: skip
    assert f"\nstart = {prompt}\n" in readme("bundle", about)
