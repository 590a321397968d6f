"""Values of a config.json, checked one by one; all that is wrong is told at once."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from gptkit.plugin import UsageError

LARGE = 1e300
"""Of a number; infinity, and integers that are no float, are above."""
T = TypeVar("T")

MOST = 2**31 - 1
"""Of a size; what torch can count is far above what a computer can hold."""


class Fields:
    """The values of a JSON object.

    Args:
        config: its contents.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self.faults: list[str] = []
        """What is wrong, such as `hidden_size = -1 should be a whole number from 1 on`."""

    def get(self, name: str) -> Any:
        """A value as it is; None if there is none."""
        return self._config.get(name)

    def __contains__(self, name: str) -> bool:
        return name in self._config

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number from 1 on; without a default it must be there."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if value is None:
            return self._wrong(f"{name} is missing", 1)
        if type(value) is int and 0 < value <= MOST:
            return value
        return self._wrong(f"{told(name, value)} should be a whole number from 1 to {MOST:,}", 1)

    def number(self, name: str, default: float) -> float:
        """A finite number above 0."""
        value = self.get(name)
        if value is None:
            return default
        if is_number(value):
            return float(value)
        return self._wrong(f"{told(name, value)} should be a number above 0", default)

    def flag(self, name: str, *, default: bool) -> bool:
        """True or false."""
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        return self._wrong(f"{told(name, value)} should be true or false", default)

    def choice(self, name: str, known: Mapping[str, str], default: str) -> str:
        """What a name stands for."""
        value = default if self.get(name) is None else self.get(name)
        if isinstance(value, str) and value in known:
            return known[value]
        names = ", ".join(json.dumps(each) for each in known)
        return self._wrong(f"{told(name, value)} is not one of {names}", next(iter(known.values())))

    def expect(self, name: str, *allowed: object) -> None:
        """Refuse a value that is there and is none of these."""
        value = self.get(name)
        if value is not None and value not in allowed:
            self.faults.append(told(name, value))

    def refuse(self, fault: str) -> None:
        """Note a fault."""
        self.faults.append(fault)

    def _wrong(self, fault: str, instead: T) -> T:
        """Note a fault and go on with a value that is right, to find further ones."""
        self.faults.append(fault)
        return instead


def is_number(value: object) -> bool:
    """Whether a JSON value is a finite number above 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < LARGE  # type: ignore[operator]


def told(name: str, value: object) -> str:
    """A value of a file in an error, cut if it is long."""
    text = json.dumps(value, default=str)
    return f"{name} = {text[:60]}{'...' if len(text) > 60 else ''}"


def refuse_all(place: str, faults: Sequence[str], *, hint: str) -> None:
    """Raise a UsageError that has all faults, if there are any."""
    if faults:
        raise UsageError(f"{place}: cannot be imported: {'; '.join(faults)}", hint=hint)
