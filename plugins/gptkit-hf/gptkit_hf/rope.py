"""Rotary positions in a config.json: old keys rope_theta and rope_scaling, new rope_parameters."""

from typing import Any

from gptkit_hf.fields import Fields, is_number, told
from gptkit_hf.shape import Shape

LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
"""The numbers of Llama 3's scaling."""
THETA = 10_000.0
"""The base where none is given."""


def read_rope(fields: Fields, block_size: int) -> dict[str, Any]:
    """The options `rope_theta` and `rope_scaling`, those that are not the default.

    Args:
        fields: of a config.json; its faults are noted there.
        block_size: longest context in tokens.
    """
    name = "rope_scaling" if fields.get("rope_scaling") else "rope_parameters"
    table = fields.get(name) or {}
    if not isinstance(table, dict) or any(isinstance(value, dict) for value in table.values()):
        fields.refuse(told(name, table))
        return {}
    theta = table.get("rope_theta", fields.number("rope_theta", THETA))
    if not is_number(theta):
        fields.refuse(told(f"{name}.rope_theta", theta))
        return {}
    for key, value in (
        (f"{name}.partial_rotary_factor", table.get("partial_rotary_factor")),
        ("partial_rotary_factor", fields.get("partial_rotary_factor")),
    ):
        if value not in (None, 1):
            fields.refuse(told(key, value))
    options: dict[str, Any] = {} if theta == THETA else {"rope_theta": float(theta)}
    kind = table.get("rope_type", table.get("type", "default"))
    if kind == "llama3":
        return options | {"rope_scaling": _llama3(fields, name, table, block_size)}
    if kind != "default":
        fields.refuse(told(f"{name}.rope_type", kind))
    return options


def write_rope(shape: Shape) -> dict[str, Any]:
    """Both the old keys, for transformers 4 and other programs, and the new one."""
    scaling = dict(shape.rope_scaling) if shape.rope_scaling else None
    new = {"rope_theta": shape.rope_theta, **(scaling or {"rope_type": "default"})}
    return {"rope_theta": shape.rope_theta, "rope_scaling": scaling, "rope_parameters": new}


def _llama3(
    fields: Fields, name: str, table: dict[str, Any], block_size: int
) -> dict[str, Any] | None:
    values = {LLAMA3[-1]: block_size} | {key: table[key] for key in LLAMA3 if key in table}
    wrong = [key for key in LLAMA3 if not is_number(values.get(key))]
    for key in wrong:
        fields.refuse(f"{told(f'{name}.{key}', values.get(key))} should be a number above 0")
    if wrong:
        return None
    if values["low_freq_factor"] >= values["high_freq_factor"]:
        fields.refuse(f"{name}.low_freq_factor should be below high_freq_factor")
    floats = {key: float(values[key]) for key in LLAMA3[:-1]}
    return {"rope_type": "llama3", **floats, LLAMA3[-1]: int(values[LLAMA3[-1]])}
