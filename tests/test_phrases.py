"""No words of pydantic reach a person: every type of error has a phrase of its own."""

import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import core_schema

from gptkit.plugin import Callback, LocalPath
from gptkit.recipe.phrases import PHRASES, WIDTH, fault, shown
from gptkit.recipe.problems import problems_of

OWN = {"value_error", "assertion_error"}
"""Types in which the author of a validator has the word."""
FOREIGN = re.compile(
    r"Input|valid |dictionary|boolean|integer|tuple|instance|Field|NoneType|frozen|[A-Z][a-z]+[A-Z]"
)


def test_every_type_of_error_has_a_phrase() -> None:
    kinds = set(get_args(core_schema.ErrorType))
    assert kinds <= PHRASES.keys() | OWN
    for kind in kinds - OWN:
        context: Any = dict.fromkeys(re.findall(r"{(\w+)}", PHRASES[kind]), 3)
        said = fault({"type": kind, "loc": (), "msg": "Input bad", "input": "x", "ctx": context})
        assert not FOREIGN.search(said), said


class Inner(BaseModel, extra="forbid", strict=True):
    depth: int
    names: list[str] = []


class Odd(Callback):
    """Options of many types."""

    contract = 1

    flag: bool = False
    count: int | None = None
    kind: Literal["a", "b"] = "a"
    either: Literal["auto"] | bool = "auto"
    several: int | list[int] | None = None
    pair: tuple[float, float] = Field(default=(0.9, 0.99), strict=False)
    table: dict[str, int] = Field(default={})
    path: LocalPath | None = None
    paths: list[LocalPath] = Field(default=[])
    part: Inner | None = None
    parts: list[Inner] = Field(default=[])
    words: Annotated[str, Field(min_length=2, pattern="^a")] = "aa"
    share: Annotated[float, Field(gt=0, le=0.5)] = 0.5
    kept: Path = Path("x")
    day: date | None = None


@pytest.mark.parametrize(
    ("option", "value", "place", "said"),
    [
        ("flag", "False", "flag", "should be true or false, in small letters, got 'False'"),
        ("flag", 1, "flag", "should be true or false, in small letters, got 1"),
        ("count", "None", "count", "should be a whole number, got 'None'"),
        ("count", True, "count", "should be a whole number, got true"),
        ("count", 1.5, "count", "should be a whole number, got 1.5"),
        ("kind", "c", "kind", "should be 'a' or 'b', got 'c'"),
        ("either", 1, "either",
         "should be 'auto'; or should be true or false, in small letters, got 1"),
        ("several", "1", "several", "should be a whole number; or should be a list in brackets, "
         "such as [0.9, 0.99], got '1'"),
        ("pair", "(1,2)", "pair", "should be a list in brackets, such as [0.9, 0.99], got '(1,2)'"),
        ("pair", [1], "pair[1]", "is required"),
        ("pair", [1, 2, 3], "pair", "should have at most 2 items, got [1, 2, 3]"),
        ("table", 3, "table", "should be a table, got 3"),
        ("table", {"x": "y"}, "table.x", "should be a whole number, got 'y'"),
        ("path", 3, "path", "should be the text of a path, got 3"),
        ("path", "", "path", "is empty"),
        ("path", "a\0b", "path", "has a null character, got 'a\\x00b'"),
        ("path", "caf\udce9", "path", "is not UTF-8, got 'caf\\udce9'"),
        ("paths", ["x", 3], "paths[1]", "should be the text of a path, got 3"),
        ("part", {"deep": 1}, "part.depth", "is required"),
        ("part", {"depth": 1, "deep": 1}, "part.deep", 'unknown key; did you mean "depth"?'),
        ("part", {"depth": 1, "zzz": 1}, "part.zzz", "unknown key; known: depth, names"),
        ("parts", [{"depth": 1, "names": [3]}], "parts[0].names[0]", "should be a text, got 3"),
        ("parts", [{"depth": 1, "nam": [3]}], "parts[0].nam", 'unknown key; did you mean "names"?'),
        ("words", "", "words", "is empty"),
        ("words", "a", "words", "should have at least 2 characters, got 'a'"),
        ("words", "bb", "words", "should match ^a, got 'bb'"),
        ("share", 0, "share", "should be greater than 0, got 0"),
        ("share", 0.75, "share", "should be at most 0.5, got 0.75"),
        ("share", ".5", "share", "should be a number, which TOML writes 0.5, got '.5'"),
        ("share", "1.", "share", "should be a number, which TOML writes 1.0, got '1.'"),
        ("share", date(2024, 1, 2), "share", "should be a number, such as 0.5, got 2024-01-02"),
        ("day", "soon", "day", "should be a date, such as 2024-12-31, got 'soon'"),
        ("mode", 1, "mode", "unknown key; known: count, day, either, flag, kept, kind, pair, part, "
         "parts, path, paths, several, share, table, words"),
    ],
)  # fmt: skip
def test_a_wrong_option_of_a_plugin_is_told_in_plain_words(
    option: str, value: object, place: str, said: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        Odd.model_validate({option: value})
    found = {p.place: p.fault for p in problems_of(caught.value, Odd, {option: value}, "log")}
    assert found[f"log.{place}"] == said


def test_a_type_that_a_recipe_cannot_have_is_told_without_its_name() -> None:
    with pytest.raises(ValidationError) as caught:
        Odd.model_validate({"kept": 3})
    (problem,) = problems_of(caught.value, Odd, {"kept": 3})
    assert not FOREIGN.search(problem.fault), problem.fault


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, 2**40_000, [["a" * 99] * 99] * 99, {"k" * 999: 1}, b"x" * 10**6],
    ids=["text", "number", "lists", "table", "bytes"],
)
def test_a_long_value_is_cut(value: object) -> None:
    assert len(shown(value)) <= WIDTH


def test_what_a_validator_says_is_taken_as_it_is() -> None:
    def said(text: str) -> str:
        context: Any = {"error": ValueError(text)}
        message = f"Value error, {text}"
        return fault({"type": "value_error", "loc": (), "msg": message, "input": 3, "ctx": context})

    assert said("Two of them are needed") == "two of them are needed"
    assert said("CLIP needs two") == "CLIP needs two"
    assert said("") == "has a wrong value, got 3"
