"""Draws a run: its losses over the steps, and three of the samples that it kept.

python docs/readme_picture.py runs/shakespeare docs/readme-shakespeare.png
"""

import json
import sys
import unicodedata
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.layout_engine import ConstrainedLayoutEngine

TRAINING, VALIDATION, TEXT, FAINT = "#8fb3d9", "#c8553d", "#222222", "#777777"
LINES, COLUMNS = 6, 54
"""How much of a sample's text is shown."""


def main(run: Path, out: Path) -> None:
    """Read a run folder and write the picture."""
    if not (run / "metrics.jsonl").is_file():
        sys.exit(f"{run}: no metrics.jsonl: train with the log callback, or name a run folder")
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(9.6, 4.5), layout=layout, facecolor="white")
    left, right = figure.subfigures(1, 2, wspace=0.04, width_ratios=[1.12, 1])
    draw_losses(left.subplots(), run / "metrics.jsonl")
    found = sorted((run / "samples").glob("step-*"))
    shown = sorted({found[0], found[len(found) // 2], found[-1]}) if found else []
    panels = right.subplots(3)
    for axes in panels:
        axes.set_axis_off()
    for axes, path in zip(panels, shown, strict=False):
        draw_sample(axes, path)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


def draw_losses(axes: Axes, metrics: Path) -> None:
    """Draw the training and the validation loss over the steps."""
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    axes.margins(x=0.09, y=0.08)
    for name, colour, label in (
        ("loss", TRAINING, "training"),
        ("val_loss", VALIDATION, "validation"),
    ):
        points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
        marker = "o" if name == "val_loss" else ""
        axes.plot(*zip(*points, strict=True), color=colour, lw=2, marker=marker, label=label)
    for step, loss in points:  # those of the validation loss
        axes.annotate(
            f"{loss:.2f}", (step, loss), (0, 7), textcoords="offset points", ha="center",
            color=VALIDATION, fontsize=9,
        )  # fmt: skip
    axes.set_xlabel("step", color=FAINT)
    axes.set_title("loss, nats per token", loc="left", color=FAINT, fontsize=10)
    axes.legend(frameon=False, labelcolor=TEXT)
    axes.grid(axis="y", color="#eeeeee")
    axes.tick_params(colors=FAINT, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#cccccc")


def draw_sample(axes: Axes, path: Path) -> None:
    """Show the text or the picture that the model drew at a step."""
    step = int(path.stem.removeprefix("step-"))
    axes.set_title(f"sample after step {step}", loc="left", color=FAINT, fontsize=10)
    if path.suffix == ".png":
        axes.imshow(imread(path))
        axes.set_anchor("NW")
        return
    lines = path.read_text(encoding="utf-8").strip().splitlines()[:LINES]
    text = "\n".join(map(shorten, lines))
    axes.text(
        0, 0.98, text, transform=axes.transAxes, va="top", color=TEXT, linespacing=1.35,
        family="monospace", fontsize=8, parse_math=False,
    )  # fmt: skip


def shorten(line: str) -> str:
    """Cut a line at its last whole word, and drop what a font cannot show."""
    line = "".join(c for c in line if not unicodedata.category(c).startswith("C"))
    return line if len(line) <= COLUMNS else line[:COLUMNS].rpartition(" ")[0] + " …"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
