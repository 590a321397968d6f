import io
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from gptkit.codec import PromptError
from gptkit.testing import check_codec
from gptkit_cifar10.codec import PixelCodec

BLACK, RED, GREEN, WHITE = (0, 0, 0), (250, 0, 0), (0, 250, 0), (255, 255, 255)
GREY = (128, 128, 128)
PALETTE = (BLACK, RED, GREEN, WHITE)
CODEC = PixelCodec(size=2, palette=PALETTE)
RGB = PixelCodec(size=2)
ANIMALS = PixelCodec(size=2, palette=PALETTE, classes=("cat", "dog", "horse"))


@pytest.fixture
def photo(tmp_path: Path) -> str:
    """Red and green above white and black, not in the palette's exact colours."""
    pixels = np.array([[(240, 9, 5), (30, 230, 9)], [(250, 251, 252), (9, 0, 3)]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def opened(contents: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(contents)))


def test_tokens_of_a_known_image(photo: str) -> None:
    assert CODEC.encode(photo) == [4, 1, 2, 3, 0]
    assert RGB.encode(photo) == [256, 240, 9, 5, 30, 230, 9, 250, 251, 252, 9, 0, 3]
    assert CODEC.decode_array([4, 1, 2, 3, 0]).tolist() == [
        [[*RED], [*GREEN]],
        [[*WHITE], [*BLACK]],
    ]


def test_sizes() -> None:
    assert (CODEC.vocab_size, CODEC.length, CODEC.lossless) == (5, 5, False)
    assert (RGB.vocab_size, RGB.length, RGB.lossless) == (257, 13, True)
    assert (ANIMALS.vocab_size, ANIMALS.length, ANIMALS.lossless) == (7, 5, False)


@pytest.mark.parametrize("size", [1, 3, 32])
def test_lossless_tokens_are_exact(image_file: Callable[..., Path], size: int) -> None:
    codec = PixelCodec(size=size)
    for seed in range(5):
        path = image_file(size=size, seed=seed)
        tokens = codec.encode(str(path))
        assert len(tokens) == codec.length
        assert np.array_equal(codec.decode_array(tokens), opened(path.read_bytes()))


@pytest.mark.parametrize("codec", [CODEC, RGB, ANIMALS], ids=["palette", "rgb", "classes"])
def test_contract(codec: PixelCodec, photo: str) -> None:
    check_codec(codec, prompts=[photo], vocab_size=codec.vocab_size)
    assert codec.start("") == codec.encode("") == [codec.first_start]


def test_a_class_has_a_start_token_of_its_own(photo: str) -> None:
    assert [ANIMALS.start("", label=name) for name in ANIMALS.classes] == [[4], [5], [6]]
    assert ANIMALS.start(photo, label="horse") == [6, 1, 2, 3, 0]
    assert ANIMALS.start(photo, keep=0.5, label="dog") == [5, 1, 2]
    assert ANIMALS.start("") == ANIMALS.encode("") == [4]


@pytest.mark.parametrize(
    ("codec", "label", "fault", "advice"),
    [
        (ANIMALS, "hors", 'no class named "hors"', 'cat, dog, horse; did you mean "horse"?'),
        (ANIMALS, "zebra", 'no class named "zebra"', "known: cat, dog, horse"),
        (ANIMALS, "", 'no class named ""', "known: cat, dog, horse"),
        (CODEC, "cat", "knows no classes", "leave --class out"),
    ],
)
def test_a_class_that_is_not_there(codec: PixelCodec, label: str, fault: str, advice: str) -> None:
    with pytest.raises(PromptError, match=fault) as caught:
        codec.start("", label=label)
    assert str(caught.value.hint).endswith(advice)


@pytest.mark.parametrize(
    ("keep", "kept"), [(0, 0), (0.1, 0), (0.25, 1), (0.5, 2), (0.7, 3), (0.99, 4), (1, 4)]
)
def test_keep_counts_the_pixels_from_above(photo: str, keep: float, kept: int) -> None:
    assert CODEC.start(photo, keep=keep) == [4, 1, 2, 3, 0][: 1 + kept]
    assert len(RGB.start(photo, keep=keep)) == 1 + round(12 * keep)


@pytest.mark.parametrize("keep", [-0.01, 1.01, math.nan, math.inf])
@pytest.mark.parametrize("with_photo", [False, True])
def test_keep_out_of_range(photo: str, keep: float, with_photo: bool) -> None:
    with pytest.raises(PromptError, match=f"keep should be between 0 and 1, got {keep}"):
        CODEC.start(photo if with_photo else "", keep=keep)


def test_a_prompt_that_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("To be or not to be")
    for prompt, fault in (
        ("no-such.png", "No such file"),
        (str(tmp_path), "is a folder"),
        (str(tmp_path / "text.png"), "not an image"),
        ("a\0b", "null byte"),
    ):
        with pytest.raises(PromptError, match=fault) as caught:
            CODEC.start(prompt)
        assert str(caught.value).startswith(f"{prompt}: cannot be read: ")
        assert "path of an image file" in str(caught.value.hint)


def test_what_no_token_says_is_grey() -> None:
    assert CODEC.decode_array([4, 1]).tolist() == [[[*RED], [*GREY]], [[*GREY], [*GREY]]]
    assert (CODEC.decode_array([4]) == 128).all()
    assert (CODEC.decode_array([]) == 128).all()
    assert RGB.decode_array([256, 9, 8]).tolist() == [[[9, 8, 128], [*GREY]], [[*GREY], [*GREY]]]


def test_a_start_token_between_pixels_is_grey_and_tokens_beyond_the_image_do_not_count() -> None:
    expected = [[[*RED], [*GREY]], [[*GREEN], [*BLACK]]]
    assert ANIMALS.decode_array([4, 1, 6, 2, 0, 3, 3, 3]).tolist() == expected
    assert RGB.decode_array([256, 1, 256, 3]).tolist()[0][0] == [1, 128, 3]


@pytest.mark.parametrize(("size", "shown"), [(1, 128), (2, 128), (32, 128), (48, 144), (200, 200)])
def test_a_sample_is_magnified_by_a_whole_factor_until_it_can_be_seen(
    size: int, shown: int
) -> None:
    codec = PixelCodec(size=size, palette=PALETTE)
    tokens = [4, *np.random.default_rng(0).integers(4, size=size * size).tolist()]
    png = codec.decode(tokens)
    assert png.startswith(b"\x89PNG")
    assert opened(png).shape == (shown, shown, 3)
    assert np.array_equal(
        opened(png)[:: shown // size, :: shown // size], codec.decode_array(tokens)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"size": 2.5},
        {"size": 2, "palette": ((0, 0, 256),)},
        {"size": 2, "palette": ((0, 0),)},
        {"size": 2, "classes": ("cat", "cat")},
        {"size": 2, "classes": tuple(map(str, range(1 << 16)))},
    ],
)
def test_impossible_codecs(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PixelCodec.model_validate(options)


def test_json_keeps_the_codec(photo: str) -> None:
    ANIMALS.encode(photo)
    assert PixelCodec.model_validate_json(ANIMALS.model_dump_json()) == ANIMALS
    assert PixelCodec.model_validate(ANIMALS.model_dump(mode="json")) == ANIMALS
    assert set(ANIMALS.model_dump()) == {"size", "palette", "classes"}


def test_the_codec_imports_no_more_than_it_needs() -> None:
    heavy = {"torch", "torchvision", "sklearn", "scipy", "threadpoolctl"}
    code = f"import sys, gptkit_cifar10.codec; sys.exit({heavy} & set(sys.modules) or 0)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_the_ids_stand_for_is_known() -> None:
    assert (CODEC.width, CODEC.height, CODEC.colors) == (2, 2, PALETTE)
    assert (RGB.colors, RGB.starts) == ((), [[256]])
    assert (ANIMALS.classes, ANIMALS.starts) == (("cat", "dog", "horse"), [[4], [5], [6]])
