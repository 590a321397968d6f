"""Images as tokens: encoded once, then cached under their digest."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, PositiveInt

from gptkit.plugin import (
    DataError,
    cache_errors,
    cache_folder,
    cached,
    digest,
    progress,
    read_file,
)
from gptkit_cifar10.codec import Byte
from gptkit_cifar10.image_source import ImageSource, Labels
from gptkit_cifar10.kmeans import fit_palette
from gptkit_cifar10.palette import Quantizer
from gptkit_cifar10.picture import Pixels

FORMAT = 2  # of the cached folder; part of its name
CHUNK = 1 << 18  # pixels encoded at a time
FILES = ("tokens.bin", "labels.bin")
MOST_META = 1 << 20  # bytes of meta.json, in which 4,096 colours take less than a tenth


class _Meta(BaseModel):
    """What meta.json holds."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    palette: tuple[tuple[Byte, Byte, Byte], ...]
    train: PositiveInt
    val: PositiveInt
    sha256: dict[str, str]
    seal: str = ""
    """Digest of the other fields."""

    def sealed(self) -> bytes:
        """The contents of meta.json."""
        plain = self.model_dump_json(exclude={"seal"}).encode()
        seal = hashlib.sha256(plain).hexdigest()
        return self.model_copy(update={"seal": seal}).model_dump_json().encode()


@dataclass(frozen=True)
class Encoded:
    """The encoded images of one source: a complete folder of the cache."""

    folder: Path
    palette: tuple[tuple[int, int, int], ...]
    """Its colours; empty for lossless tokens."""
    train: int
    """Images for training; they come first."""
    val: int
    """Images for validation."""

    @property
    def tokens(self) -> Path:
        """Raw uint16 (train + val, tokens of an image)."""
        return self.folder / "tokens.bin"

    def labels(self) -> Labels:
        """The class of every image, (train + val,)."""
        return np.fromfile(self.folder / "labels.bin", np.int64)


def encoded(source: ImageSource, *, size: int, colors: int | Literal["rgb"], seed: int) -> Encoded:
    """The source's images as tokens; encoded if they are not in the cache.

    Args:
        source: where the images come from.
        size: pixels a side.
        colors: size of the palette; "rgb" for three tokens per pixel: red, green and blue.
        seed: of the palette.

    Raises:
        DataError: an image cannot be read, or the cache cannot be written.
        DownloadError: the images cannot be downloaded.
    """
    options = json.dumps([FORMAT, source.key, size, colors, seed])
    folder = cache_folder("cifar10") / hashlib.sha256(options.encode()).hexdigest()

    tokens = size * size * (3 if colors == "rgb" else 1)  # of an image
    most = 0 if colors == "rgb" else colors

    def build(target: Path) -> None:
        _encode(source, target, size=size, colors=colors, seed=seed)

    def opened(folder: Path) -> Encoded | None:
        return _open(folder, source, tokens, most)

    with cache_errors(folder):
        found = opened(folder)
        if found is None:
            found = opened(cached(folder, build, fits=lambda folder: opened(folder) is not None))
    if found is None:
        raise DataError(f"{folder}: damaged right after it was written", hint="check the disk")
    return found


def _encode(
    source: ImageSource, target: Path, *, size: int, colors: int | Literal["rgb"], seed: int
) -> None:
    """Decode every image once into a file of pixels, then turn the pixels into tokens."""
    staged = target / "pixels.bin"
    train, val = _stage(source, size, staged, target / "labels.bin")
    pixels = np.memmap(staged, np.uint8, mode="r").reshape(-1, 3)
    of_training = pixels[: train * size * size]
    palette = None if colors == "rgb" else fit_palette(of_training, colors, seed=seed)
    _write_tokens(pixels, palette, target / "tokens.bin")
    del pixels, of_training
    staged.unlink()
    meta = _Meta(
        palette=tuple(() if palette is None else map(tuple, palette.tolist())),
        train=train,
        val=val,
        sha256={name: digest(target / name) for name in FILES},
    )
    (target / "meta.json").write_bytes(meta.sealed())


def _stage(source: ImageSource, size: int, pixels: Path, labels: Path) -> tuple[int, int]:
    """Write all pixels and labels; return how many images are for training and for validation."""
    counts = {True: 0, False: 0}
    with pixels.open("wb") as pixel_file, labels.open("wb") as label_file:
        with progress("reading images", unit="images") as advance:
            for chunk in source.chunks(size):
                pixel_file.write(np.ascontiguousarray(chunk.pixels).data)
                label_file.write(chunk.labels.data)
                counts[chunk.training] += len(chunk.labels)
                advance(len(chunk.labels))
    return counts[True], counts[False]


def _write_tokens(pixels: Pixels, palette: Pixels | None, target: Path) -> None:
    quantize = None if palette is None else Quantizer(palette)
    shown = progress("encoding images", total=len(pixels), unit="pixels")
    with target.open("wb") as file, shown as advance:
        for first in range(0, len(pixels), CHUNK):
            part = pixels[first : first + CHUNK]
            file.write((quantize(part) if quantize else part.astype(np.uint16)).data)
            advance(len(part))


def _open(folder: Path, source: ImageSource, tokens: int, colors: int) -> Encoded | None:
    """The images of a cached folder, or None if it is incomplete, damaged or lies."""
    try:
        written = read_file(folder / "meta.json", limit=MOST_META)
        meta = _Meta.model_validate_json(written)
        if meta.sealed() != written:
            return None
        if any(digest(folder / name) != meta.sha256[name] for name in FILES):
            return None
        found = Encoded(folder, meta.palette, meta.train, meta.val)
        fits = _fits(found, len(source.classes), tokens, colors)
        return found if fits else None
    except (OSError, ValueError, KeyError):
        return None


def _fits(images: Encoded, classes: int, tokens: int, colors: int) -> bool:
    """Whether each image has a label and so many tokens, all in range; 0 colours: no palette."""
    count, labels = images.train + images.val, images.labels()
    stored = np.memmap(images.tokens, np.uint16, mode="r")
    return (
        bool(colors) <= len(images.palette) <= colors
        and labels.shape == (count,)
        and stored.shape == (count * tokens,)
        and 0 <= labels.min() <= labels.max() < classes
        and int(stored.max()) < (len(images.palette) or 256)
    )
