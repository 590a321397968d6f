"""What is seen while something long is computed, and what Ctrl-C leaves of it."""

import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from gptkit.analysis.evaluation import evaluate_run
from gptkit.analysis.probes import Probe, probe_run
from gptkit.cli import drawing
from gptkit.data import progress
from gptkit.runs.loaded import LoadedModel, load_checkpoint
from gptkit.sampling.rule import SamplingOptions
from gptkit.sampling.samples import RULE, SampleRequest, Samples
from gptkit.show import exports
from gptkit.show.results import print_probe
from gptkit.show.tables import print_rows
from tests.support import BYTES, train

ESCAPE = re.compile(r"\x1b\[[\d;?]*[a-zA-Z]")
SMALL = {"n_layer": 1, "n_head": 1, "n_embd": 8}
GREEDY = SamplingOptions(temperature=0)


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Interrupted(LoadedModel):
    """The model of a run, whose drawing Ctrl-C ends instead of its step `at`."""

    def __init__(self, run: Path, at: int) -> None:
        model = load_checkpoint(run, device="cpu")
        super().__init__(model.model, model.codec, model.state)
        self.at = at

    def draw(self, *args: Any, **options: Any) -> Samples:
        return self._stopping(super().draw(*args, **options))

    def draw_each(self, *args: Any) -> Samples:
        return self._stopping(super().draw_each(*args))

    def _stopping(self, drawn: Samples) -> Samples:
        def steps() -> Iterator[None]:
            yield from islice(drawn.steps, self.at)
            signal.raise_signal(signal.SIGINT)

        return replace(drawn, steps=steps())


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that draws text."""
    folder = tmp_path_factory.mktemp("text")
    return train(folder, {"use": "char-text", "block_size": 16}, SMALL)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that draws pictures of ten classes."""
    folder, options = (
        tmp_path_factory.mktemp("shapes"),
        {"source": "shapes", "size": 4, "class_conditional": True},
    )
    return train(folder, {"use": "cifar10", "colors": 8, **options}, SMALL)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], str]:
    """Calls a function whose stderr is a terminal with a bar for everything; what it showed."""
    monkeypatch.setattr(progress, "DELAY", -1)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")

    def call(function: Callable[[], object]) -> str:
        with redirect_stderr(Terminal()) as shown:
            function()
        return ESCAPE.sub("", shown.getvalue())

    return call


def test_measurements_show_how_far_they_are(shapes: Path, terminal: Callable[..., str]) -> None:
    shown = terminal(lambda: evaluate_run(shapes, device="cpu", by_class=True))
    assert re.search(r"classifying .*600 of 600 items", shown)
    assert re.search(r"measuring the loss .*600 of 600 items", shown)
    shown = terminal(lambda: probe_run(shapes, device="cpu", items=40))
    assert re.search(r"computing features .*80 of 80 items", shown)
    assert re.search(r"fitting .*3 of 3 layers", shown)


def test_drawing_into_a_file_shows_how_far_it_is(
    text: Path, terminal: Callable[..., str], tmp_path: Path
) -> None:
    model, request = load_checkpoint(text, device="cpu"), SampleRequest(tokens=20, samples=3)
    out = tmp_path / "s.txt"
    shown = terminal(lambda: drawing.write(model, request, GREEDY, model.codec, out))
    assert re.search(r"drawing .*60 of 60 tokens", shown)
    assert shown.endswith(f"written: {out}\n")


def test_texts_are_shown_while_they_are_drawn(text: Path) -> None:
    model = load_checkpoint(text, device="cpu")
    request = SampleRequest("Shall I", tokens=20, samples=2)
    drawn = model.draw(request, SamplingOptions(seed=1))
    pieces, sizes = [], []
    for piece in drawn.pieces(model.codec):
        pieces.append(piece)
        sizes.append(drawn.samples[1].size)
    assert sizes[:4] == [0, 1, 2, 3]
    first, second = "".join(pieces).split(RULE)
    assert [first, second] == model.draw(request, SamplingOptions(seed=1)).texts(model.codec)
    assert len(second) == 27


@pytest.mark.parametrize("samples", [1, 2])
def test_text_reaches_a_pipe_while_it_is_drawn(
    text: Path, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    model, seen = load_checkpoint(text, device="cpu"), []
    drawn = model.draw(SampleRequest("Shall I", tokens=20, samples=samples), GREEDY)

    def watched() -> Iterator[None]:
        for step in drawn.steps:
            yield step
            seen.append(len(os.read(reader, 100)))

    with open(reader, "rb"), open(writer, "w") as pipe:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", pipe)
        drawing.show(replace(drawn, steps=watched()), model.codec)
    assert seen == [len("Shall I") + 1, *[1] * 19]


@pytest.mark.parametrize("samples", [1, 2])
def test_ctrl_c_writes_what_was_drawn(text: Path, samples: int, tmp_path: Path) -> None:
    model, out = Interrupted(text, at=7), tmp_path / "s.txt"
    request = SampleRequest("Shall I", tokens=20, samples=samples)
    with pytest.raises(KeyboardInterrupt):
        drawing.write(model, request, GREEDY, model.codec, out)
    whole = load_checkpoint(text, device="cpu").draw(request, GREEDY).texts(model.codec)
    assert out.read_text() == RULE.join(sample[:14] for sample in whole) + "\n"


def test_ctrl_c_writes_what_was_drawn_of_pictures(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = Interrupted(shapes, at=7), tmp_path / "s.png"
    with pytest.raises(KeyboardInterrupt):
        drawing.write(model, SampleRequest(samples=2), GREEDY, model.codec, out)
    assert out.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().err == f"written: {out} (the classes in turn: bar, checker)\n"


def test_ctrl_c_shows_what_was_drawn(text: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    model = Interrupted(text, at=7)
    request = SampleRequest("Shall I", tokens=20, samples=2)
    whole = load_checkpoint(text, device="cpu").draw(request, GREEDY).texts(model.codec)
    with pytest.raises(KeyboardInterrupt):
        drawing.show(model.draw(request, GREEDY), model.codec)
    shown = RULE.join(sample[:14] for sample in whole) + "\n"
    assert capfdbinary.readouterr().out.decode() == shown


def test_ctrl_c_before_anything_was_drawn_leaves_the_file(text: Path, tmp_path: Path) -> None:
    model, out = Interrupted(text, at=0), tmp_path / "s.txt"
    out.write_text("earlier")
    with pytest.raises(KeyboardInterrupt):
        drawing.write(model, SampleRequest(tokens=20), GREEDY, model.codec, out)
    assert out.read_text() == "earlier"


def test_ctrl_c_keeps_the_whole_rows_of_a_file_of_prompts(text: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "p.jsonl", tmp_path / "s.jsonl"
    prompts.write_text('{"prompt": "S", "tokens": 9}\n{"prompt": "T", "tokens": 3}')
    model = Interrupted(text, at=5)
    with pytest.raises(KeyboardInterrupt):
        drawing.write_each(model, prompts, SampleRequest(), GREEDY, model.codec, out)
    (row,) = map(json.loads, out.read_text().splitlines())
    assert (row["prompt"], len(row["sample"])) == ("T", 4)


def test_an_export_shows_one_line_of_its_own(terminal: Callable[..., str]) -> None:
    def work() -> None:
        with exports.working(), progress.progress("reading") as advance:
            advance(1)

    assert "comparing it with the checkpoint" in (shown := terminal(work))
    assert "reading" not in shown


def test_accuracies_are_shown_in_percent(capsys: pytest.CaptureFixture[str]) -> None:
    found = Probe([0.3, 1 / 3], raw=None, chance=0.1, train_items=60, val_items=30, step=4)
    print_probe(found, None, as_json=False)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1:5] == ["embedding 30.0 %", "after block 1 33.3 %", "raw data -", "chance 10.0 %"]


def test_numbers_of_a_column_are_below_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"run": "a", "step": 4, "val_loss": 3.607, "lr": 3e-4, "flip": True},
        {"run": "b", "step": 12, "val_loss": 2.27981, "lr": 0.001, "flip": None},
    ]
    print_rows(rows, tuple(rows[0]), as_json=False)
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "run  step  val loss      lr  flip",
        "a       4    3.6070  0.0003  true",
        "b      12    2.2798   0.001     -",
    ]


def test_what_a_data_set_prints_is_no_result(
    cli: Callable[..., Result], distribution: Callable[..., Path], tmp_path: Path
) -> None:
    code = BYTES.replace(
        "        def load(self):", "        def load(self):\n            print('hi')"
    )
    distribution("acorn-bytes", code, datasets="bytes = Bytes", codecs="bytes = ByteCodec")
    (tmp_path / "text").write_bytes(b"0123456789" * 500)
    train(tmp_path, {"use": "bytes", "path": "text"}, SMALL)
    result = cli("eval", "r", "--json")
    assert json.loads(result.stdout)["step"] == 1
    assert result.stderr.endswith("hi\n")


def test_a_run_is_measured_without_its_callbacks(
    cli: Callable[..., Result], tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    assert cli("train", tiny_recipe(), "--out", "r").exit_code == 0
    recipe = tmp_path / "r" / "recipe.toml"
    recipe.write_text(recipe.read_text() + '\n[[callbacks]]\nuse = "of-somebody-else"\n')
    result = cli("eval", "r", "--json")
    assert result.exit_code == 0, result.output
    assert 'no callback named "of-somebody-else"' in cli("resume", "r").stderr
