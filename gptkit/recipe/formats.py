"""The formats of exported models: an installed plugin and options become a Format."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from gptkit.errors import UsageError
from gptkit.plugin import Format
from gptkit.recipe import recipe, registry, table

SET_HINT = "for example --set dtype=float16"


def make(name: str, options: Mapping[str, Any]) -> Format:
    """A format with its options.

    Args:
        name: of its entry point, or DISTRIBUTION:NAME.
        options: by name.

    Raises:
        PluginError: there is no such format, or it cannot be imported.
        UsageError: an option is unknown or has a wrong value; says all that is wrong.
    """
    kind = registry.load(registry.find("format", name))
    try:
        made = kind.model_validate(dict(options))
    except ValidationError as error:
        problems = recipe.problems_of(error, kind, name)
        raise UsageError(
            "\n".join(map(str, problems)), hint=f"gptkit plugins show {name} lists its options"
        ) from None
    assert isinstance(made, Format)
    return made


def options_of(overrides: Iterable[str]) -> dict[str, Any]:
    """The options in `OPTION=VALUE` texts as given to `--set`; later ones win.

    Raises:
        UsageError: a text is not of that form.
    """
    options = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip().isidentifier():
            raise UsageError(f"--set {override}: not of the form option=value", hint=SET_HINT)
        options[key.strip()] = table.parse_value(text)
    return options
