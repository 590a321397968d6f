"""Callback states: trees of JSON values with tensors anywhere among them.

A tree is stored as its JSON values, with null in the place of every tensor, and as the tensors by
their paths: in `{"ema": {"wte.weight": t}, "old": [t]}` they are `ema/wte.weight` and `old/0`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gptkit.contract.tensor_types import DTYPES
from gptkit.errors import PluginError

_ADVICE = {
    "tuple": "a list",
    "set": "a sorted list",
    "frozenset": "a sorted list",
    "ndarray": "torch.from_numpy(...) or .tolist()",
    "bytes": "a text, or a tensor of uint8",
}
"""What to store instead of a value of that type."""


def separate(tree: Any, *, name: str, place: str) -> tuple[Any, dict[str, Tensor]]:
    """The JSON values of a tree, and its tensors by path.

    Args:
        tree: dicts with texts as keys, lists, texts, numbers, booleans, None and tensors.
        name: the first part of every path.
        place: what errors call the tree.

    Raises:
        PluginError: something in it is neither a JSON value nor a tensor; names its place.
    """
    tensors: dict[str, Tensor] = {}
    return _separate(tree, _escape(name), place, tensors), tensors


def join(values: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that `separate` took apart; `values` are those of one name or of several, by name.

    Mappings of other types come back as dicts.
    """
    if "" in tensors:
        return tensors[""]
    below: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        first, _, rest = path.partition("/")
        below.setdefault(_unescape(first), {})[rest] = tensor
    if isinstance(values, list):
        return [join(value, below.get(str(i), {})) for i, value in enumerate(values)]
    if isinstance(values, Mapping):
        return {key: join(value, below.get(key, {})) for key, value in values.items()}
    return values


def last_key(path: str) -> str:
    """The key of a tensor in the dict that holds it, for example a parameter's name."""
    return _unescape(path.rpartition("/")[2])


def _separate(tree: Any, path: str, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        _check_type(tree, place)
        tensors[path] = tree
        return None
    if tree is None or type(tree) in (bool, int, float, str):
        return tree
    if isinstance(tree, list):
        return [
            _separate(value, f"{path}/{i}", f"{place}[{i}]", tensors)
            for i, value in enumerate(tree)
        ]
    if isinstance(tree, Mapping):
        _check_keys(tree, place)
        return {
            key: _separate(value, f"{path}/{_escape(key)}", f"{place}[{key!r}]", tensors)
            for key, value in tree.items()
        }
    raise PluginError(
        f"{place} is {_describe(tree)}, neither a JSON value nor a tensor", hint=_advise(tree)
    )


def _check_type(tensor: Tensor, place: str) -> None:
    if tensor.layout != torch.strided or tensor.dtype not in DTYPES:
        kind = tensor.layout if tensor.layout != torch.strided else tensor.dtype
        raise PluginError(
            f"{place} is a tensor of {kind}, which no checkpoint holds",
            hint="store a dense tensor of another type, such as torch.view_as_real(...)",
        )


def _check_keys(tree: Mapping[Any, Any], place: str) -> None:
    for key in tree:
        if type(key) is not str:
            raise PluginError(
                f"{place} has the key {key!r}, {_describe(key)}: keys should be texts",
                hint=f'use "{key}"',
            )


def _describe(value: Any) -> str:
    kind = type(value)
    library = kind.__module__.partition(".")[0]
    name = kind.__name__ if library == "builtins" else f"{library}.{kind.__name__}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _advise(value: Any) -> str:
    base = next((k.__name__ for k in (int, float, str) if isinstance(value, k)), None)
    near = f"{base}(...)" if base else ".item()" if hasattr(value, "item") else None
    advice = _ADVICE.get(type(value).__name__, near)
    kinds = "dicts with texts as keys, lists, texts, numbers, booleans, None and tensors"
    return (
        f"use {advice}; what can be stored: {kinds}" if advice else f"what can be stored: {kinds}"
    )


def _escape(key: str) -> str:
    """A key without slashes, as in JSON pointers (RFC 6901), and never empty."""
    return key.replace("~", "~0").replace("/", "~1") or "~2"


def _unescape(key: str) -> str:
    return key.replace("~2", "").replace("~1", "/").replace("~0", "~")
