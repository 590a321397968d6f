"""Tensors of safetensors files: the names and shapes at once, the numbers when they are asked for.

A file is mapped for one tensor at a time, so that what was read does not stay in memory.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gptkit.plugin import RunError, UsageError, read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
AGAIN = "get the model again: a file is damaged, or has not come whole"
CONVERT = (
    "pytorch_model.bin is a pickle, which can run any program when it is opened. In a place where "
    "that is safe: transformers.AutoModelForCausalLM.from_pretrained(FOLDER)"
    ".save_pretrained(NEW, safe_serialization=True)"
)


class Entry(NamedTuple):
    """Where a tensor is."""

    file: Path
    name: str
    shape: tuple[int, ...]


class Tensors(Mapping[str, Tensor]):
    """The tensors of files by name.

    Args:
        entries: where each one is.
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.entries = dict(entries)

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        try:
            with safe_open(entry.file, framework="pt") as file:
                tensor: Tensor = file.get_tensor(entry.name)
                return tensor
        except (OSError, SafetensorError, RuntimeError) as error:
            raise damaged(entry.file, error) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries  # without reading it


def read_tensors(folder: Path) -> Tensors:
    """The tensors of a folder of transformers.

    Raises:
        UsageError: there are none, or only a pickle.
        RunError: a file is missing or damaged, or the index names one that is not in the folder.
    """
    if (folder / INDEX).exists():
        return _indexed(folder)
    if (folder / SINGLE).exists():
        return Tensors(_entries([folder / SINGLE], folder))
    if any(folder.glob("pytorch_model*.bin*")):
        raise UsageError(f"{folder}: has its weights only in pytorch_model.bin", hint=CONVERT)
    raise UsageError(f"{folder}: has no {SINGLE}, nor {INDEX}", hint="choose a folder with weights")


def damaged(file: Path, error: Exception) -> RunError:
    """The error for a file that cannot be read."""
    return RunError(f"{file}: cannot be read: {error}", hint=AGAIN)


def _indexed(folder: Path) -> Tensors:
    place = folder / INDEX
    try:
        weight_map = read_json(place)["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{place}: is no index of weights: {error!r}", hint=AGAIN) from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise RunError(f"{place}: is no index of weights", hint=AGAIN)
    for name in weight_map.values():
        _check_name(place, name)
    entries = _entries([folder / name for name in sorted(set(weight_map.values()))], folder)
    for tensor, name in weight_map.items():
        if tensor not in entries or entries[tensor].file != folder / name:
            raise RunError(f"{place}: {tensor[:80]} is not in {name}", hint=AGAIN)
    return Tensors(entries)


def _check_name(place: Path, name: object) -> None:
    """Refuse a name of a file that is not in the folder itself."""
    safe = isinstance(name, str) and name.endswith(".safetensors")
    if not safe or Path(str(name)).name != name or "\\" in str(name) or "\0" in str(name):
        raise RunError(
            f"{place}: names a file that is not in the folder: {str(name)[:80]!r}",
            hint="do not use this model: files of a model name none outside its folder",
        )


def _check_inside(file: Path, folder: Path) -> None:
    """Refuse a link that leads out of the folder, other than into the Hub's cache of this model."""
    home, target = folder.resolve(), file.resolve()
    inside = [home]
    if home.parent.name == "snapshots":
        inside.append(home.parent.parent / "blobs")
    if not any(target.is_relative_to(each) for each in inside):
        raise RunError(
            f"{file}: is a link to a file outside the folder: {target}",
            hint="put the file itself there",
        )


def _entries(files: Iterable[Path], folder: Path) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for file in files:
        if not file.exists():
            raise RunError(f"{file}: is missing", hint=AGAIN)
        _check_inside(file, folder)
        if not file.is_file():
            raise RunError(f"{file}: is no file", hint=AGAIN)
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not iterable
                    if name in found:
                        raise RunError(f"{file}: {name[:80]} is in {found[name].file.name}, too")
                    shape = tuple(opened.get_slice(name).get_shape())
                    found[name] = Entry(file, name, shape)
        except (OSError, SafetensorError) as error:
            raise damaged(file, error) from error
    return found
