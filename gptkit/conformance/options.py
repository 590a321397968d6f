"""The contract of a plugin's options as assertions."""

import json
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from gptkit.conformance.codec import check_contract
from gptkit.contract.base import Plugin


def check_options(plugin: Plugin) -> None:
    """Assert that a plugin and its options are documented, and the options frozen and strict."""
    kind = type(plugin)
    assert (kind.__doc__ or "").strip(), f"{kind.__name__} needs a docstring"
    check_contract(kind)
    for name, field in kind.model_fields.items():
        assert field.description, f"{kind.__name__}.{name} needs a sentence below it"
        value = getattr(plugin, name)
        assert _refused(setattr, plugin, name, value), "options must be frozen"
    assert _refused(kind.model_validate, {"no_such_option": 1}), "unknown options must be refused"
    options = plugin.model_dump(mode="json", exclude_none=True)
    again = kind.model_validate(json.loads(json.dumps(options)))
    assert again.model_dump() == plugin.model_dump(), "options must survive TOML and JSON"


def _refused(action: Callable[..., Any], *arguments: Any) -> bool:
    try:
        action(*arguments)
    except ValidationError:
        return True
    return False
