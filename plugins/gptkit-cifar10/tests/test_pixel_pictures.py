import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gptkit_cifar10.picture import PictureError, fit, read_picture

ORIENTATION = 0x0112


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


def flat(mode: str, color: object, **info: object) -> Callable[[Path], None]:
    image = Image.new(mode, (6, 6), color)  # type: ignore[arg-type]
    return lambda path: image.save(path, **info)


@pytest.mark.parametrize(
    ("name", "save", "expected"),
    [
        ("l.png", flat("L", 77), (77, 77, 77)),
        ("bits.png", flat("1", 1), (255, 255, 255)),
        ("rgba.png", flat("RGBA", (200, 0, 0, 0)), (255, 255, 255)),
        ("half.png", flat("RGBA", (200, 0, 0, 128)), (227, 127, 127)),
        ("la.png", flat("LA", (0, 255)), (0, 0, 0)),
        ("hole.png", flat("L", 77, transparency=77), (255, 255, 255)),
        ("l16.png", flat("I;16", 0x1234), (0x12, 0x12, 0x12)),
        ("p.png", flat("P", 0), (0, 0, 0)),
        ("p.gif", flat("P", 0), (0, 0, 0)),
        ("cmyk.jpg", flat("CMYK", (0, 255, 255, 0)), (254, 0, 0)),
        ("l.jpg", flat("L", 77), (77, 77, 77)),
        ("rgb.webp", flat("RGB", (9, 8, 7)), None),
        ("rgb.tif", flat("RGB", (9, 8, 7)), (9, 8, 7)),
        ("rgb.bmp", flat("RGB", (9, 8, 7)), (9, 8, 7)),
        ("rgb.ppm", flat("RGB", (9, 8, 7)), (9, 8, 7)),
        ("f.tif", flat("F", 0.5), (128, 128, 128)),
        ("f255.tif", flat("F", 77.4), (77, 77, 77)),
        ("f16.tif", flat("F", 0x1234), (0x12, 0x12, 0x12)),
        ("i.tif", flat("I", 0x1234), (0x12, 0x12, 0x12)),
        ("rgb.pcx", flat("RGB", (9, 8, 7)), (9, 8, 7)),
        ("rgb.TGA", flat("RGB", (9, 8, 7)), (9, 8, 7)),
        ("png.txt", lambda path: flat("RGB", (9, 8, 7), format="PNG")(path), (9, 8, 7)),
    ],
)
def test_any_mode_becomes_rgb(
    tmp_path: Path,
    name: str,
    save: Callable[[Path], None],
    expected: tuple[int, int, int] | None,
) -> None:
    save(tmp_path / name)
    for size in (2, 6, 7):
        pixels = read_picture(tmp_path / name, size)
        assert (pixels.shape, pixels.dtype) == ((size, size, 3), np.uint8)
        if expected:
            assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.resize((4, 4)).save(tmp_path / "p.png", transparency=1)
    pixels = read_picture(tmp_path / "p.png", 4)
    assert pixels[0].tolist() == [[10, 20, 30]] * 2 + [[255, 255, 255]] * 2


def test_a_transparent_colour_does_not_bleed_into_the_others(tmp_path: Path) -> None:
    pixels = np.full((4, 4, 4), (0, 0, 255, 255), np.uint8)
    pixels[:, 2:] = (255, 0, 0, 0)  # red, but not to be seen
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    assert read_picture(tmp_path / "rgba.png", 1).tolist() == [[[127, 127, 255]]]


@pytest.mark.parametrize(("width", "height", "left", "top"), [(8, 4, 2, 0), (4, 9, 0, 2)])
def test_the_central_square_is_cut_out(width: int, height: int, left: int, top: int) -> None:
    image = gradient(width, height)
    cut = image.crop((left, top, left + 4, top + 4))
    assert np.array_equal(fit(image, 4), np.asarray(cut))


def test_a_whole_factor_is_the_mean_of_each_block() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    means = pixels.reshape(8, 4, 8, 4, 3).mean((1, 3))
    assert np.abs(fit(Image.fromarray(pixels), 8) - means).max() <= 1
    assert np.array_equal(fit(Image.fromarray(pixels), 32), pixels)


def test_resizing_is_antialiased() -> None:
    stripes = np.zeros((100, 100, 3), np.uint8)
    stripes[::2] = 255
    assert np.abs(fit(Image.fromarray(stripes), 7).astype(int) - 128).max() < 20


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    turns = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    upright = gradient(8, 8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = upright
    for turn in turns.get(orientation, []):
        stored = stored.transpose(turn)
    stored.save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "photo.png", 8), np.asarray(upright))


def test_one_pixel_grows(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "dot.png")
    assert (read_picture(tmp_path / "dot.png", 32) == (1, 2, 3)).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory's peak from /proc")
def test_a_large_jpeg_is_decoded_at_no_more_resolution_than_needed(tmp_path: Path) -> None:
    gradient(6000, 6000).save(tmp_path / "large.jpg", quality=50)
    code = (
        "import sys; from gptkit_cifar10.picture import *\n"
        "print(read_picture(Path(sys.argv[1]), 8).tolist())\n"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "large.jpg")]
    result = subprocess.run(command, capture_output=True, check=True)
    pixels, kilobytes = map(json.loads, result.stdout.splitlines())
    assert kilobytes < 100_000  # all of its pixels alone are 108,000
    assert np.abs(np.array(pixels) - fit(gradient(80, 80), 8)).max() <= 3


@pytest.mark.parametrize(("width", "height"), [(10_000, 9_000), (30_000, 30_000)])
def test_a_bomb_is_refused_at_once(tmp_path: Path, width: int, height: int) -> None:
    gradient(40, 40).save(tmp_path / "bomb.png")
    whole = (tmp_path / "bomb.png").read_bytes()
    header = b"IHDR" + struct.pack(">II", width, height) + whole[24:29]
    lie = whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]
    (tmp_path / "bomb.png").write_bytes(lie)
    with pytest.raises(PictureError, match="has more than 64,000,000 pixels"):
        read_picture(tmp_path / "bomb.png", 8)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.gif", "a.bmp"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    gradient(64, 64).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for length in (0, 1, 10, 60, len(whole) // 2):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(PictureError):
            read_picture(tmp_path / name, 8)


def test_garbage_gives_a_picture_or_an_error_and_nothing_else(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("a.png", "a.jpg", "a.tif", "a.gif"):
        gradient(16, 16).save(tmp_path / name)
        whole = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        for _ in range(100):
            harmed = whole.copy()
            harmed[random.integers(len(whole), size=3)] = random.integers(256, size=3)
            (tmp_path / name).write_bytes(harmed.tobytes())
            try:
                assert read_picture(tmp_path / name, 8).shape == (8, 8, 3)
            except PictureError as error:
                assert str(error)


def test_a_program_in_postscript_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    with pytest.raises(PictureError, match="not an image"):
        read_picture(tmp_path / "a.png", 8)


@pytest.mark.parametrize("grey", [float("nan"), float("inf"), -1.0, 70_000.0])
def test_grey_values_of_no_known_range_are_refused(tmp_path: Path, grey: float) -> None:
    Image.new("F", (4, 4), grey).save(tmp_path / "f.tif")
    with pytest.raises(PictureError, match="0 to 1, 255 or 65,535 are read"):
        read_picture(tmp_path / "f.tif", 8)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_a_pipe_or_a_device_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(PictureError, match="is a pipe, not a regular file"):
        read_picture(tmp_path / "pipe.png", 8)
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with pytest.raises(PictureError, match="is a device, not a regular file"):
        read_picture(tmp_path / "zero.png", 8)
