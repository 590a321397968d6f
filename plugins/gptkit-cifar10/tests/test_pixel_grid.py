import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gptkit.codec import PromptError
from gptkit_cifar10.codec import PixelCodec
from gptkit_cifar10.grid import half_blocks, halved

PALETTE = tuple((level, 0, 255 - level) for level in range(0, 256, 17))
CODEC = PixelCodec(size=4, palette=PALETTE)
SCALE = 32
WHITE, GREY = [255, 255, 255], [128, 128, 128]
CELL = re.compile(r"(\x1b\[38;2;\d+;\d+;\d+m)(\x1b\[48;2;\d+;\d+;\d+m|\x1b\[49m)▀")


def sample(color: int) -> list[int]:
    return [16] + [color] * 16


def opened(contents: bytes) -> np.ndarray:
    """The sheet in pixels of its pictures; checks that each is one even block."""
    large = np.asarray(Image.open(io.BytesIO(contents)))
    small = large[::SCALE, ::SCALE]
    assert np.array_equal(small.repeat(SCALE, 0).repeat(SCALE, 1), large)
    return small


@pytest.mark.parametrize(
    ("samples", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (5, 2, 3), (9, 3, 3), (10, 3, 4)]
)
def test_samples_make_up_about_a_square(samples: int, rows: int, columns: int) -> None:
    sheet = opened(CODEC.sheet([sample(color) for color in range(samples)]))
    assert sheet.shape == (rows * 5 + 1, columns * 5 + 1, 3)
    for number in range(rows * columns):
        top, left = 1 + number // columns * 5, 1 + number % columns * 5
        cell = sheet[top : top + 4, left : left + 4].reshape(-1, 3)
        expected = [*PALETTE[number]] if number < samples else WHITE
        assert (cell == expected).all()
    assert (sheet[::5] == 255).all()
    assert (sheet[:, ::5] == 255).all()


@pytest.mark.parametrize(("samples", "rows", "columns"), [(2, 1, 2), (3, 1, 3), (7, 3, 3)])
def test_each_of_a_few_classes_has_a_column(samples: int, rows: int, columns: int) -> None:
    codec = PixelCodec(size=4, palette=PALETTE, classes=("red", "green", "blue"))
    drawn = [[16 + i % 3] + [i] * 16 for i in range(samples)]
    assert opened(codec.sheet(drawn)).shape == (rows * 5 + 1, columns * 5 + 1, 3)
    of_one_class = [[17] + [i] * 16 for i in range(samples)]
    side = {2: 2, 3: 2, 7: 3}[samples]
    assert opened(codec.sheet(of_one_class)).shape[1] == side * 5 + 1


def test_a_prompt_stands_beside_what_continues_it(image_file: Callable[..., Path]) -> None:
    prompt = str(image_file())
    start = CODEC.start(prompt, keep=0.5)
    samples = [[*start, *[color] * 8] for color in (3, 7)]
    sheet = opened(CODEC.sheet(samples, prompt=prompt, kept=len(start)))
    assert sheet.shape == (6, 4 * 5 + 1, 3)
    given, first, second, whole = (sheet[1:5, left : left + 4] for left in range(1, 20, 5))
    assert np.array_equal(whole, CODEC.decode_array(CODEC.encode(prompt)))
    for half in (given, first, second):
        assert np.array_equal(half[:2], whole[:2])
    assert (given[2:] == GREY).all()
    assert (first[2:] == PALETTE[3]).all()
    assert (second[2:] == PALETTE[7]).all()


def test_many_completions_stand_in_rows_between_the_two(image_file: Callable[..., Path]) -> None:
    prompt = str(image_file())
    samples = [[*CODEC.start(prompt, keep=0), *[color] * 16] for color in range(8)]
    sheet = opened(CODEC.sheet(samples, prompt=prompt, kept=1))
    assert sheet.shape == (3 * 5 + 1, 5 * 5 + 1, 3)
    assert (sheet[1:5, 1:5] == GREY).all()
    assert np.array_equal(sheet[1:5, 21:25], CODEC.decode_array(CODEC.encode(prompt)))
    assert sheet[6, 6].tolist() == [*PALETTE[3]]
    for place in (sheet[6:, 1:5], sheet[6:, 21:25], sheet[11:, 16:20]):
        assert (place == 255).all()


def test_a_prompt_that_has_gone_is_named() -> None:
    with pytest.raises(PromptError, match=r"gone\.png: cannot be read"):
        CODEC.sheet([sample(1)], prompt="gone.png", kept=1)


def test_two_pixels_make_a_character() -> None:
    pixels = np.arange(3 * 2 * 3, dtype=np.uint8).reshape(3, 2, 3)
    upper, lower = half_blocks(pixels, width=2).split("\n")
    fore, back = "\x1b[38;2;{};{};{}m", "\x1b[48;2;{};{};{}m"
    assert upper == (
        fore.format(0, 1, 2) + back.format(6, 7, 8) + "▀"
        + fore.format(3, 4, 5) + back.format(9, 10, 11) + "▀\x1b[0m"
    )  # fmt: skip
    assert lower.count("\x1b[49m▀") == 2


@pytest.mark.parametrize(
    ("samples", "width", "columns", "lines"),
    [
        (1, 80, 60, 30),  # 6 pixels with their frame, ten times
        (1, 11, 6, 3),
        (1, 6, 6, 3),
        (16, 80, 63, 32),
        (16, 20, 11, 21),  # 21 pixels do not fit, so two columns are below the others
        (16, 10, 10, 5),  # nor do 11
        (100, 1, 1, 1),
    ],
)
def test_a_preview_fits_the_terminal(samples: int, width: int, columns: int, lines: int) -> None:
    text = CODEC.preview(CODEC.sheet([sample(i % 16) for i in range(samples)]), width=width)
    assert text is not None
    rows = [CELL.findall(line) for line in text.split("\n")]
    assert (len(rows), {len(row) for row in rows}) == (lines, {columns})


def test_the_right_half_of_a_wide_sheet_is_below_the_left_one() -> None:
    sheet = np.asarray(Image.open(io.BytesIO(CODEC.sheet([sample(i) for i in range(9)]))))
    cells = halved(sheet[::SCALE, ::SCALE], size=4, width=12)[1::5, 1::5]
    white = tuple(WHITE)
    assert [[tuple(cell) for cell in row] for row in cells.tolist()] == [
        [PALETTE[0], PALETTE[1]], [PALETTE[3], PALETTE[4]], [PALETTE[6], PALETTE[7]],
        [PALETTE[2], white], [PALETTE[5], white], [PALETTE[8], white],
    ]  # fmt: skip


def test_a_preview_shows_the_colours_of_a_sample() -> None:
    text = CODEC.preview(CODEC.decode([16, *range(16)]), width=4)
    assert text is not None
    red, _, blue = PALETTE[0]
    assert text.startswith(f"\x1b[38;2;{red};0;{blue}m\x1b[48;2;{PALETTE[4][0]};0;")
    assert len(text.split("\n")) == 2


def test_what_cannot_be_previewed() -> None:
    assert CODEC.preview(b"no picture", width=80) is None
    assert CODEC.preview(CODEC.decode([16]), width=0) is None
