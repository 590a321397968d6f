"""What is wrong with a value, in the words of this project instead of pydantic's."""

import datetime
import reprlib
from collections.abc import Mapping
from typing import Any

from pydantic_core import ErrorDetails

from gptkit.terminal import harmless

WIDTH = 80
"""The longest value that a message quotes, in characters."""

_LIST = "should be a list in brackets, such as [0.9, 0.99]"
_TABLE = "should be a table"
_UNSET = "is of a type that a recipe cannot have"
_TYPES: dict[str, str] = {
    "should be true or false, in small letters": "bool_type bool_parsing",
    "should be a whole number": "int_type int_parsing int_parsing_size int_from_float",
    "should be a number, such as 0.5": "float_type float_parsing decimal_type decimal_parsing "
    "fraction_type fraction_parsing complex_type complex_str_parsing",
    "should be a finite number": "finite_number",
    "should be a text": "string_type bytes_type string_sub_type",
    "should be the text of a path": "path_type",
    "should be UTF-8": "string_unicode bytes_invalid_encoding",
    "should have only ASCII characters": "string_not_ascii",
    _LIST: "list_type tuple_type set_type frozen_set_type deque_type iterable_type "
    "named_tuple_type arguments_type iteration_error",
    "should hold nothing that is a list or a table": "set_item_not_hashable",
    _TABLE: "dict_type model_type model_attributes_type dataclass_type dataclass_exact_type "
    "mapping_type frozen_dict_type ordered_dict_type counter_type",
    "is required": "missing missing_argument missing_keyword_only_argument "
    "missing_positional_only_argument default_factory_not_called",
    "is unknown": "extra_forbidden unexpected_keyword_argument unexpected_positional_argument "
    "no_such_attribute",
    "is given twice": "multiple_argument_values",
    "should have a text as its key": "invalid_key",
    "is nested too deeply": "recursion_loop recursion_depth_exceeded",
    "cannot be changed": "frozen_field frozen_instance",
    "should be left out": "none_required missing_sentinel_error",
    "should be greater than {gt}": "greater_than",
    "should be at least {ge}": "greater_than_equal",
    "should be less than {lt}": "less_than",
    "should be at most {le}": "less_than_equal",
    "should be a multiple of {multiple_of}": "multiple_of",
    "should have at least {min_length} items": "too_short",
    "should have at most {max_length} items": "too_long",
    "should have at least {min_length} characters": "string_too_short bytes_too_short",
    "should have at most {max_length} characters": "string_too_long bytes_too_long url_too_long",
    "should match {pattern}": "string_pattern_mismatch",
    "should be {expected}": "literal_error enum",
    "should name its kind by {discriminator}": "union_tag_not_found",
    "should be {expected_tags}": "union_tag_invalid",
    "should be a date, such as 2024-12-31": "date_type date_parsing date_from_datetime_parsing "
    "date_from_datetime_inexact",
    "should be a time, such as 12:30:00": "time_type time_parsing",
    "should be a date with a time, such as 2024-12-31 12:30:00": "datetime_type datetime_parsing "
    "datetime_object_invalid datetime_from_date_parsing",
    "should be in the past": "date_past datetime_past",
    "should be in the future": "date_future datetime_future",
    "should have no time zone": "timezone_naive",
    "should have a time zone": "timezone_aware",
    "should have another time zone": "timezone_offset",
    "should be a duration, such as 1:30:00": "time_delta_type time_delta_parsing",
    "should be a URL, such as https://example.org": "url_type url_parsing url_syntax_violation",
    "should be a URL with {expected_schemes}": "url_scheme",
    "should be a UUID": "uuid_type uuid_parsing uuid_version",
    "should be JSON": "json_invalid json_type",
    "should have at most {max_digits} digits": "decimal_max_digits",
    "should have at most {decimal_places} digits after the point": "decimal_max_places",
    "should have at most {whole_digits} digits before the point": "decimal_whole_digits",
    _UNSET: "is_instance_of is_subclass_of callable_type needs_python_object get_attribute_error "
    "ellipsis_error",
}
PHRASES = {kind: phrase for phrase, kinds in _TYPES.items() for kind in kinds.split()}
"""The phrase of each of pydantic's types of errors but those in which a validator has its own."""
_WITHOUT_VALUE = ("is required", "is unknown", "is given twice", "cannot be changed")


class _Short(reprlib.Repr):
    """Shows the beginning of a value, without looking at the rest of it."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, WIDTH, WIDTH

    def repr_bool(self, value: bool, level: int) -> str:
        return str(value).lower()

    def repr_int(self, value: int, level: int) -> str:
        return str(value) if value.bit_length() <= 128 else f"a number of {value.bit_length()} bits"

    def repr_NoneType(self, value: None, level: int) -> str:  # noqa: N802
        return "None"

    def repr_date(self, value: datetime.date, level: int) -> str:
        return value.isoformat()

    repr_datetime = repr_date


def shown(value: Any) -> str:
    """A value, quoted for a message: at most `WIDTH` characters of it."""
    return short(_Short().repr(value))


def short(text: str, width: int = WIDTH) -> str:
    """The beginning of a text that stands in a message, in one line."""
    beginning = text if len(text) <= width else f"{text[: width - 3]}..."
    return harmless(beginning, keep="")


def fault(details: ErrorDetails) -> str:
    """What is wrong, and with which value."""
    kind, value = details["type"], details["input"]
    context: Mapping[str, Any] = details.get("ctx", {})
    phrase = PHRASES.get(kind)
    if phrase is None:
        own = str(context.get("error", "") if kind in _OWN else details["msg"])
        return _begin_small(own) if own else f"has a wrong value, got {shown(value)}"
    if phrase in _WITHOUT_VALUE:
        return phrase
    if kind == "string_too_short" and not value:
        return "is empty"
    if kind.startswith("float") and isinstance(value, str) and (number := _number(value)):
        return f"should be a number, which TOML writes {number}, got {shown(value)}"
    words = phrase.format_map({key: _plain(each) for key, each in context.items()})
    words = words.replace(" 1 items", " 1 item").replace(" 1 characters", " 1 character")
    return f"{words}, got {shown(value)}"


_OWN = ("value_error", "assertion_error")


def _plain(value: Any) -> str:
    whole = isinstance(value, float) and value.is_integer()
    return short(str(int(value) if whole else value))


def _begin_small(text: str) -> str:
    text = text.removeprefix("Input ")
    return text[0].lower() + text[1:] if text[1:2].islower() else text


def _number(text: str) -> str | None:
    """A number that Python reads but TOML does not, such as ".5", as TOML writes it."""
    try:
        return repr(float(text))
    except ValueError:
        return None
