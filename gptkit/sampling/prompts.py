"""Files of prompts: a prompt in each line, or JSON objects in a .jsonl file. Imports no torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gptkit.codec import Codec, TextCodec
from gptkit.errors import UsageError
from gptkit.files import read_file
from gptkit.recipe.problems import first_fault
from gptkit.sampling.model import Model
from gptkit.sampling.rule import SamplingOptions
from gptkit.sampling.samples import SampleRequest, Samples

MOST_BYTES = 1 << 28
"""Of a file of prompts."""


@dataclass(frozen=True)
class Prompts:
    """The requests of a file, one for each line."""

    requests: list[SampleRequest]
    seeds: list[int]
    rows: list[dict[str, Any]] | None
    """The objects of a .jsonl file; None for any other."""

    def draw(self, model: Model, sampling: SamplingOptions) -> Samples:
        """Start to draw the samples; those of a .jsonl file are written as its objects.

        Raises:
            PromptError: the codec cannot read a prompt, or a prompt already fills its sample.
        """
        drawn = model.draw_each(self.requests, sampling, self.seeds)
        if self.rows is None:
            return drawn
        return _JsonSamples(drawn.prompt, drawn.samples, drawn.steps, self.rows)


@dataclass(frozen=True)
class _JsonSamples(Samples):
    """Samples that are written as the objects of a file, each with its "sample"."""

    rows: list[dict[str, Any]]

    def id_lines(self) -> bytes:
        """Draw to the end; each "sample" is a list of token ids. Only whole samples are written."""
        return self._lines(self.token_ids())

    def contents(self, codec: Codec) -> list[bytes]:
        """Draw to the end; each "sample" is a text. Only whole samples are written."""
        assert isinstance(codec, TextCodec)
        return [self._lines(self.texts(codec)).removesuffix(b"\n")]

    def _lines(self, found: Sequence[str] | Sequence[list[int]]) -> bytes:
        rows = zip(self.rows, found, self.samples, strict=True)
        whole = [row | {"sample": sample} for row, sample, drawn in rows if drawn.ended]
        lines = [json.dumps(row, ensure_ascii=False) for row in whole]
        return "".join(f"{line}\n" for line in lines).encode()


NOT_IN_A_ROW = {
    *("temperature", "top_k", "top_p", "stop", "ignore_stop", "keep", "samples", "n", "ids"),
    *("max_tokens", "max_new_tokens", "max_length", "num_samples", "do_sample", "label"),
}
"""Names that would be read as options of the sampling, which have no effect in a row."""


class _Row(BaseModel):
    """An object of a .jsonl file; what else it holds goes to the output unread."""

    model_config = ConfigDict(extra="ignore", strict=True)

    prompt: str
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    tokens: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    label: str | None = Field(None, alias="class")

    def request(self, default: SampleRequest, place: str) -> SampleRequest:
        """The request for its sample."""
        tokens, label = self.tokens or default.tokens, self.label or default.label
        return replace(default, prompt=self.prompt, tokens=tokens, label=label, place=place)


def read_prompts(path: Path, request: SampleRequest, *, seed: int) -> Prompts:
    """Read a file of prompts.

    Args:
        path: of a file in UTF-8 with a prompt in each line; if its name ends in .jsonl, with an
            object in each line: {"prompt": "..."}, and if wanted "seed", "tokens" and "class".
            Names of other options of the sampling are refused; other fields are passed on.
        request: what a line does not say.
        seed: of lines that have none.

    Raises:
        UsageError: the file cannot be read, is empty, or a line is wrong.
    """
    lines = _lines(path)
    places = [f"{path}:{number}" for number in range(1, len(lines) + 1)]
    is_json = path.suffix.lower() == ".jsonl"
    parsed = [
        _parse(line, place) if is_json else _Row(prompt=line)
        for line, place in zip(lines, places, strict=True)
    ]
    return Prompts(
        [row.request(request, place) for row, place in zip(parsed, places, strict=True)],
        [seed if row.seed is None else row.seed for row in parsed],
        [json.loads(line) for line in lines] if is_json else None,
    )


def _lines(path: Path) -> list[str]:
    try:
        text = read_file(path, limit=MOST_BYTES, pipes=True).decode("utf-8-sig")
    except OSError as error:
        fault, hint = error.strerror, "--prompts FILE"
        raise UsageError(f"{path}: cannot be read: {fault}", hint=hint) from error
    except UnicodeDecodeError as error:
        hint = "save it as UTF-8"
        raise UsageError(f"{path}: cannot be read: it is not UTF-8", hint=hint) from error
    if not text:
        raise UsageError(f"{path}: holds no prompts", hint="write a prompt in each line")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _parse(line: str, place: str) -> _Row:
    try:
        row = _Row.model_validate_json(line)
    except ValidationError as error:
        raise UsageError(
            f"{place}: {first_fault(error)}", hint='a line is an object: {"prompt": "Once upon"}'
        ) from None
    for name in json.loads(line):
        if name.lower().replace("-", "_") in NOT_IN_A_ROW:
            raise UsageError(
                f"{place}: {name}: is no option of a line; it may have prompt, seed, tokens, class",
                hint="give the others to the command, for all lines",
            )
    return row
