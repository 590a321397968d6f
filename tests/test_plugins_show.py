"""`gptkit plugins show`: plain types, and the classes of the contract."""

import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, PositiveInt
from typer.testing import Result

from gptkit.plugin import Data, LocalPath, TrainState
from gptkit.show.prose import print_prose
from gptkit.show.types import field_default, field_type

Command = Callable[..., Result]


class Inner(BaseModel):
    x: int = 0


@pytest.mark.parametrize(
    ("annotation", "default", "type_", "shown"),
    [
        (PositiveInt, 3, "int, above 0", "3"),
        (Annotated[int, Field(ge=0, lt=2**63)], 1, "int, at least 0, below 2**63", "1"),
        (Annotated[int, Field(le=2**31 - 1)], 1, "int, at most 2**31 - 1", "1"),
        (float, float("inf"), "number", "inf"),
        (str, "a", "text", '"a"'),
        (str, 'é"\n', "text", r'"é\"\n"'),
        (bool, True, "true or false", "true"),
        (LocalPath | None, None, "path", "unset"),
        (list[str], ["a", "b"], "list of text", '["a", "b"]'),
        (tuple[int, ...], (1, 2), "list of int", "[1, 2]"),
        (tuple[float, float], (0.9, 0.95), "list of 2: number, number", "[0.9, 0.95]"),
        (Sequence[PositiveInt], (), "list of int, above 0", "[]"),
        (dict[str, float], {}, "table of number", "{}"),
        (Literal["a", "b"] | int, "a", '"a" or "b" or int', '"a"'),
        (Annotated[float, Field(ge=0.5, lt=1)], 0.5, "number, at least 0.5, below 1", "0.5"),
        (Inner, Inner(), "table", "{ x = 0 }"),
        (dict[str, Any], {"a": [1], "b": "c"}, "table of anything", '{ a = [1], b = "c" }'),
        (Any, None, "anything", "unset"),
    ],
)
def test_types_and_defaults_are_plain(
    annotation: Any, default: Any, type_: str, shown: str
) -> None:
    class Options(BaseModel):
        option: annotation = default
        made: annotation = Field(default_factory=lambda: default)
        needed: annotation

    for name, expected in (("option", shown), ("made", shown), ("needed", "required")):
        field = Options.model_fields[name]
        assert (field_type(field), field_default(field)) == (type_, expected)


@pytest.mark.parametrize("part", [Data, TrainState])
def test_every_field_of_the_contracts_classes_is_told(cli: Command, part: type) -> None:
    shown = cli("plugins", "show", part.__name__).stdout
    assert f"class {part.__name__}\n" in shown
    for field in fields(part):  # type: ignore[arg-type]
        assert f"    {field.name}: " in shown, f"{field.name} is not in the class's docstring"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "Split",
            ["stride: ", "labels: ", "at_hand: ", "indices(seed, step, batch_size)", "__len__()"],
        ),
        ("Callback", ["on_save_end(state)", "    Before the batch", "weights()"]),
        ("TextCodec", ["encode(prompt)", "token_bytes\n", "    Token ids that start a sample."]),
        ("Format", ["write(model, path)", "suffix: "]),
        ("Codec", ["suffix: ", "temperature: ", "contract: "]),
        ("fetch", ["fetch(url"]),
        ("IGNORE", ["IGNORE = -100"]),
        ("check_codec", ["check_codec(codec, *, prompts=(), vocab_size)", "how many token ids"]),
        ("LocalPath", ["LocalPath: path"]),
    ],
)
def test_a_part_of_the_contract_is_shown(cli: Command, name: str, expected: list[str]) -> None:
    result = cli("plugins", "show", name)
    assert result.exit_code == 0
    for text in expected:
        assert text in result.stdout


class Terminal(io.StringIO):
    """A stdout that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_long_line_is_broken_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    monkeypatch.setattr(sys, "stdout", shown := Terminal())
    print_prose(
        "A text: one that is\ntoo long.\n\nArgs:\n    field: what it means,\n        for you.\n"
        "    x: y.\nf(x)\n    Short."
    )
    assert shown.getvalue().splitlines() == [
        "A text: one that is too",
        "long.",
        "",
        "Args:",
        "    field: what it",
        "        means, for you.",
        "    x: y.",
        "f(x)",
        "    Short.",
    ]


def test_a_name_like_a_part_of_the_contract(cli: Command) -> None:
    result = cli("plugins", "show", "TrainStat")
    assert result.exit_code == 2
    assert (
        result.stderr == 'error: no plugin named "TrainStat"\nhint:  did you mean "TrainState"?\n'
    )
    assert "installed: " in cli("plugins", "show", "grad-clp").stderr


def test_a_command_is_listed_shown_and_checked(
    cli: Command, distribution: Callable[..., Path]
) -> None:
    source = "import typer\nhello = typer.Typer()\nthing = 3\n"
    distribution("acme-hello", source, commands="hello = hello")
    distribution("acme-thing", source, commands="thing = thing")
    assert "command" in cli("plugins", "list").stdout
    assert "command hello (acme-hello 1.2)" in cli("plugins", "show", "hello").stdout
    checked = cli("plugins", "check")
    assert "command hello (acme-hello 1.2): ok" in checked.stdout
    said = "command thing (acme-thing 1.2): acme_thing:thing is not a Typer app; tell the authors"
    assert said in checked.stdout


def test_several_plugins_are_checked_with_tracebacks_of_failed_imports_alone(
    cli: Command, distribution: Callable[..., Path]
) -> None:
    source = "from gptkit.plugin import Callback\nclass Mine(Callback):\n    {}\n"
    distribution("acme-lost", "import nothing_of_that_name", callbacks="lost = Mine")
    distribution("acme-typo", source.format("use: int = 3"), callbacks="typo = Mine")
    distribution("acme-log", source.format("contract = 1"), callbacks="log = Mine")
    result = cli("plugins", "check", "typo", "acme-log:log")
    assert result.exit_code == 2
    assert result.stdout.splitlines() == [
        "callback typo (acme-typo 1.2): Mine.use: recipes use that key; rename the option; "
        "mend the class in acme_typo, or tell the authors of acme-typo",
        'the callback name "log" is claimed by acme-log 1.2 and gptkit-log 0.6.0; '
        'choose one: "acme-log:log" or "gptkit-log:log"; or pip uninstall the other',
    ]
    lost = cli("plugins", "check", "lost").stdout
    assert "Traceback" in lost
    assert "No module named 'nothing_of_that_name'" in lost
