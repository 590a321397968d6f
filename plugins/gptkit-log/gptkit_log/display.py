"""Training progress: one live line on a terminal, plain lines in a pipe."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from rich.cells import chop_cells
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from gptkit.plugin import harmless

FORMATS: dict[str, Callable[[float], str]] = {
    "loss": "loss {:.4f}".format,
    "val_loss": "val {:.4f}".format,
    "lr": "lr {:.1e}".format,
    "grad_norm": "grad {:.2f}".format,
    "tokens_per_second": "{:,.0f} tok/s".format,
    "mfu": "mfu {:.0%}".format,
    "memory_mb": "{:,.0f} MB".format,
    "eta": lambda seconds: f"eta {duration(seconds)}",
}
"""The values that a line shows, in this order, and their formats."""

DROP_ORDER = ("memory_mb", "mfu", "grad_norm", "lr", "tokens_per_second", "val_loss", "eta", "loss")
"""The values that a narrow terminal leaves out, first to last."""

BAR = 12
SMALLEST_BAR = 4
QUOTED = "  | "
"""What is left of a sample."""
WIDEST = 2
"""Columns of the widest character."""


class Display(ABC):
    """Shows the progress of training.

    Args:
        console: where it appears.
        step: updates done before.
        steps: updates that the recipe asks for.
    """

    def __init__(self, console: Console, *, step: int, steps: int) -> None:
        self.console, self.steps = console, steps

    @abstractmethod
    def advance(self, step: int) -> None:
        """Show that `step` updates are done."""

    @abstractmethod
    def show(self, record: Mapping[str, float]) -> None:
        """Show the values of a logged step."""

    @abstractmethod
    def close(self) -> None:
        """Restore the console. It may be called twice."""

    def show_evaluation(self, losses: Mapping[str, float]) -> None:
        """Print the step of an evaluation and its losses."""
        parts = [f"step {losses['step']}/{self.steps}"]
        for name, loss in losses.items():
            if name != "step":
                _, _, weights = name.partition("val_loss_")
                parts.append(f"{weights or 'val'} loss {loss:.4f}")
        self.say("  ".join(parts))

    def show_sample(self, text: str) -> None:
        """Print a sample with a bar at its left."""
        self.say(quote(text))

    def say(self, text: str) -> None:
        """Print text harmless for a terminal: not wrapped, no markup, no colours."""
        self.console.out(harmless(text), highlight=False)


class PlainDisplay(Display):
    """A line for every logged step and every evaluation."""

    def advance(self, step: int) -> None:
        """Do nothing: only logged steps have a line."""

    def show(self, record: Mapping[str, float]) -> None:
        """Print the record as a line."""
        self.say("  ".join([f"step {record['step']}/{self.steps}", *words(record)]))

    def close(self) -> None:
        """Do nothing: there is nothing to restore."""


class LiveDisplay(Display):
    """One line with a bar, redrawn in place; evaluations are printed above it."""

    def __init__(self, console: Console, *, step: int, steps: int) -> None:
        super().__init__(console, step=step, steps=steps)
        self._record: dict[str, float] = {"step": step}
        self._progress = _Line(
            BarColumn(bar_width=BAR),
            _Words(console),
            console=console,
            refresh_per_second=4,
            # On a terminal, print() has to appear above the line; in a pipe it must stay as it is.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._progress.add_task("", total=steps, completed=step, record=self._record)
        self._progress.start()

    def advance(self, step: int) -> None:
        """Move the bar."""
        self.show({"step": step})

    def show(self, record: Mapping[str, float]) -> None:
        """Put the new values into the line and keep the others."""
        # A new dict, since the thread that redraws the line may be reading the old one.
        self._record = {**self._record, **record}
        self._progress.update(self._task, completed=self._record["step"], record=self._record)

    def show_sample(self, text: str) -> None:
        """Print a sample above the line, with a bar at its left."""
        self.say(quote(text, width=self.console.width))

    def show_evaluation(self, losses: Mapping[str, float]) -> None:
        """Print the result above the line and put it into the line."""
        super().show_evaluation(losses)
        self.show(losses)

    def close(self) -> None:
        """Draw the line a last time and show the cursor again."""
        self._progress.stop()


def open_display(console: Console, *, step: int, steps: int) -> Display:
    """A live display if the console is a terminal that can redraw a line, else a plain one."""
    live = console.is_interactive and console.file.isatty() and not console.quiet
    kind = LiveDisplay if live else PlainDisplay
    return kind(console, step=step, steps=steps)


def words(record: Mapping[str, float]) -> list[str]:
    """The values as text: `loss 2.1034`, `lr 1.0e-03`."""
    return [write(record[name]) for name, write in FORMATS.items() if name in record]


def fitted(record: Mapping[str, float], steps: int, *, width: int) -> str:
    """`100/1000 loss 2.1034 lr 1.0e-03` with as many values as fit; always the step."""
    for count in range(len(DROP_ORDER) + 1):
        kept = {name: record[name] for name in record if name not in DROP_ORDER[:count]}
        text = " ".join([f"{record['step']}/{steps}", *words(kept)])
        if len(text) <= width:
            break
    return text


def quote(text: str, *, width: int | None = None) -> str:
    """A sample with a bar at its left, harmless for a terminal.

    A line that is wider than the terminal goes on in lines that are indented as much, without bar.
    """
    lines = []
    for line in harmless(text).splitlines() or [""]:
        first, *others = [line] if width is None else _parts(line, width - len(QUOTED))
        lines += [QUOTED + first, *(" " * len(QUOTED) + other for other in others)]
    return "\n".join(lines)


def _parts(line: str, room: int) -> list[str]:
    """A line in parts that are not wider than the room."""
    return chop_cells(line.expandtabs(), max(room, WIDEST)) or [""]


def duration(seconds: float) -> str:
    """Seconds as `0:42` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Narrow:
    def __init__(self, line: RenderableType) -> None:
        self.line = line

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(self.line, options.update(max_width=_room(console)))


class _Line(Progress):
    """A line that leaves room for `^C`, which a terminal shows behind it: else it would break."""

    def get_renderable(self) -> _Narrow:
        return _Narrow(super().get_renderable())


def _room(console: Console) -> int:
    return max(1, console.width - len("^C"))


class _Words(ProgressColumn):
    """The values beside the bar, as many as the terminal has room for."""

    def __init__(self, console: Console) -> None:
        super().__init__(Column(no_wrap=True))
        self._console = console

    def render(self, task: Task) -> Text:
        room = _room(self._console) - SMALLEST_BAR - 1
        return Text(fitted(task.fields["record"], round(task.total or 0), width=room))
