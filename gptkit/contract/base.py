"""Plugin: the base of data sets, callbacks and formats; and the type of their path options."""

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Strict

from gptkit.codec import check_untyped
from gptkit.errors import DefinitionError

RESERVED = ("use", "on_error")
"""Keys that a recipe has beside a plugin's options."""


def _absolute(path: Path) -> Path:
    try:
        found = path.expanduser().absolute()
        os.fspath(found).encode()
    except RuntimeError as error:  # "~name" of an unknown user
        raise ValueError(str(error)) from error
    except UnicodeEncodeError:
        raise ValueError(f"is not UTF-8, got {os.fspath(path)!r}") from None
    if "\0" in os.fspath(path):
        raise ValueError(f"has a null character, got {os.fspath(path)!r}")
    return found


def _not_empty(path: Any) -> Any:
    if path == "":
        raise ValueError("is empty")
    return path


LocalPath = Annotated[Path, Strict(False), BeforeValidator(_not_empty), AfterValidator(_absolute)]
"""A path option: `~` is the user's home, a relative path is below the working
directory. An empty path is refused, and one that is not UTF-8."""


class Plugin(BaseModel):
    """Base of every plugin. Options are frozen; unknown ones and wrong types are refused.

    A type that TOML lacks, such as a tuple, needs `Field(strict=False)`; paths are `LocalPath`.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        ser_json_inf_nan="constants",
        use_attribute_docstrings=True,
        validate_default=True,
        arbitrary_types_allowed=True,
    )

    contract: ClassVar[int]
    """The version of the plugin contract that the plugin is written for: `contract = 1`."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse an option that no recipe could set."""
        check_untyped(cls)
        for name in RESERVED:
            if name in cls.model_fields:
                raise DefinitionError(
                    f"{cls.__name__}.{name}: recipes use that key; rename the option"
                )
