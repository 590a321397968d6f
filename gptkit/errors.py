"""The errors that a user can act on, and the exit codes of the command line.

The message of an error names the place and the fault, its hint the next move. The command line
prints a `GptkitError` as two lines; any other exception is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


class GptkitError(Exception):
    """A failure that the user can understand and act on.

    Args:
        message: the place and the fault, without a final full stop.
        hint: the next move; printed on a line of its own.
    """

    exit_code = 1
    run: Any = None
    """The `gptkit.Run` that stopped or failed, if `gptkit.train` or `gptkit.resume` made one."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(GptkitError):
    """Bad usage: an option, a path or a name on the command line is wrong."""

    exit_code = 2


class PluginError(UsageError):
    """A plugin is missing, ambiguous, fails to import or breaks the contract."""


class DefinitionError(TypeError):
    """A plugin's class is written against the contract; raised as soon as it is defined."""


class DataError(UsageError):
    """The data that a recipe points to cannot be used."""


class CacheError(DataError):
    """A plugin's derived files cannot be written; the data itself is right."""

    exit_code = 1


class PromptError(UsageError):
    """A prompt cannot be turned into tokens by the model's codec."""


class DownloadError(GptkitError):
    """A download failed: no network, a wrong size or a wrong checksum."""


class CheckpointError(GptkitError):
    """A checkpoint is damaged, incomplete or of a newer format, or cannot be written."""


class FormatError(CheckpointError):
    """A checkpoint has a newer format than this gptkit reads."""


class ModelFileError(GptkitError):
    """An exported model cannot be used: damaged, from another program, or of a newer format."""


class ExportError(GptkitError):
    """An exported model is not equal to the checkpoint; no file was written."""

    exit_code = 4


class RunError(GptkitError):
    """A run cannot start or continue, or a file cannot be written."""


class PeerError(GptkitError):
    """Another process of the same run has failed and reported why; this one ends silently.

    Args:
        exit_code: the exit code of this process.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


class DivergedError(GptkitError):
    """The loss, a gradient or a weight became infinite or NaN; that step was not saved."""

    exit_code = 3


class StoppedError(GptkitError):
    """Training was stopped by a signal, after a checkpoint was saved.

    Args:
        message: what was saved.
        hint: how to resume.
        signum: the signal; the exit code is 128 + signum, as in shells.
    """

    def __init__(self, message: str, *, hint: str, signum: int) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = 128 + signum


Key = tuple[int | str, ...]
"""The parts of a key, such as ("callbacks", 1, "every")."""
MOST = 20
"""How many problems are shown at once."""


@dataclass(frozen=True)
class Problem:
    """One fault in a recipe, its place, e.g. `callbacks[1] (grad-clip).max_norm`, and a hint."""

    place: str
    fault: str
    hint: str | None = None
    key: Key = ()
    """The place without the plugins' names."""
    override: str | None = None
    """The `--set KEY` that made it; errors name that in place of the recipe and the place."""

    def __str__(self) -> str:
        place = self.override or self.place
        return f"{place}: {self.fault}" if place else self.fault


class RecipeError(UsageError):
    """All problems of a recipe at once.

    Args:
        source: the recipe's path.
        problems: the faults, each with its place; at least one.
    """

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        shown = self.problems[:MOST]
        hints = dict.fromkeys(problem.hint for problem in shown if problem.hint)
        lines = [str(p) if p.override else f"{source}: {p}" for p in shown]
        if len(self.problems) > MOST:
            lines.append(f"{source}: has more problems")
        super().__init__("\n".join(lines), hint="\n".join(hints) or None)


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most similar to `word`, if one is similar enough."""
    if len(word) > 100:
        return None  # the comparison would take long
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None
