import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console

from gptkit.codec import Codec, PromptError
from gptkit.plugin import RunError, TrainState
from gptkit.testing import LetterCodec, check_callback, make_state
from gptkit_log import Log
from gptkit_log.display import LiveDisplay, PlainDisplay, duration, fitted, open_display, quote
from gptkit_log.files import LINE_BYTES, MetricsFile

ESCAPE = re.compile(r"\x1b\[[\d;?]*[a-zA-Z]")
STEP_LINE = re.compile(
    r"step 2/4  loss 0\.\d{4}  lr 1\.0e-01  grad 0\.50  [\d,]+ tok/s  eta \d+:\d\d"
)


class PictureCodec(Codec):
    contract = 1
    suffix: ClassVar[str] = ".png"

    def encode(self, prompt: str) -> list[int]:
        return [0]

    def decode(self, tokens: Sequence[int]) -> bytes:
        return b"\x89PNG"


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def state(tmp_path: Path) -> TrainState:
    state = make_state(tmp_path)

    def sample(tokens: int, seed: int, prompt: str = "") -> bytes:
        return prompt.encode() + b"a [bold]sample[/bold] :smile:\n%d %d" % (tokens, seed)

    state.sample = sample
    return state


def train(
    log: Log,
    state: TrainState,
    *,
    eval_every: int = 2,
    until: int | None = None,
    each_step: Callable[[], None] = lambda: None,
) -> None:
    """The trainer's loop as far as a logger sees it."""
    try:
        log.on_fit_start(state)
        while state.step < (until or state.steps) and not state.stop:
            state.begin_step()
            log.on_step_start(state)
            state.loss = torch.tensor(1 / (state.step + 2))
            state.metrics["grad_norm"] = torch.tensor(0.5)
            each_step()
            state.step += 1
            state.tokens += state.tokens_per_step
            log.on_step_end(state)
            if state.step % eval_every == 0:
                state.recorder.stop()
                state.val_loss, state.val_step = 2.0 / state.step, state.step
                log.on_eval_end(state)
    finally:
        log.on_fit_end(state)


def metrics(state: TrainState) -> list[dict[str, Any]]:
    assert state.run_dir
    return [json.loads(line) for line in (state.run_dir / "metrics.jsonl").read_text().splitlines()]


def losses(state: TrainState) -> list[tuple[int, str]]:
    return [(r["step"], "val_loss" if "val_loss" in r else "loss") for r in metrics(state)]


def test_metrics_file_has_a_record_per_line_and_evaluation(state: TrainState) -> None:
    train(Log(every=3), state)
    assert losses(state) == [(2, "val_loss"), (3, "loss"), (4, "loss"), (4, "val_loss")]
    third, evaluation = metrics(state)[1], metrics(state)[3]
    assert evaluation == {"step": 4, "val_loss": 0.5}
    assert list(third) == [
        "step", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "elapsed",
    ]  # fmt: skip
    assert third["loss"] == 0.25
    assert third["lr"] == 0.1
    assert third["grad_norm"] == 0.5
    assert third["tokens"] == 3 * 64
    assert third["tokens_per_second"] > 0


def test_the_rate_that_a_schedule_recorded_wins(state: TrainState) -> None:
    state.metrics["lr"] = 5e-4
    train(Log(), state)
    assert metrics(state)[-2]["lr"] == 5e-4


def test_a_number_that_is_not_finite_is_null(state: TrainState) -> None:
    state.metrics["spread"] = math.inf
    train(Log(), state)
    assert metrics(state)[-2]["spread"] is None


def test_a_resumed_run_drops_what_it_repeats_and_a_torn_line(state: TrainState) -> None:
    train(Log(every=1), state, until=3)
    assert state.run_dir
    with (state.run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    before = (state.run_dir / "metrics.jsonl").read_text().splitlines()
    state.step = 2
    train(Log(every=1), state)
    assert losses(state) == [
        (1, "loss"), (2, "loss"), (2, "val_loss"), (3, "loss"), (4, "loss"), (4, "val_loss"),
    ]  # fmt: skip
    after = (state.run_dir / "metrics.jsonl").read_text().splitlines()
    assert after[:3] == before[:3]


def test_a_resumed_run_counts_the_seconds_of_earlier_processes(state: TrainState) -> None:
    assert state.run_dir
    (state.run_dir / "metrics.jsonl").write_text('{"step": 2, "elapsed": 100.0}\n')
    state.step = 2
    train(Log(every=1), state)
    assert 100 <= metrics(state)[1]["elapsed"] < 110


DAMAGED = [b"\x00\xff\n", b"[3]\n", b'{"loss": 1.0}\n', b"\n", b'{"step":' * 9999, b'{"step": "1"}']
DAMAGED = [line.removesuffix(b"\n") + b"\n" for line in DAMAGED]
LONG = b'{"step": 0, "x": "' + b"y" * LINE_BYTES + b'"}\n'


@pytest.mark.parametrize("end", [b"", b'{"st', b'{"step": 99', b"\x00" * 5000, LONG, *DAMAGED])
def test_the_records_until_a_step_stay_as_they_are(end: bytes, tmp_path: Path) -> None:
    path, random = tmp_path / "metrics.jsonl", Random(len(end))
    lines = []
    for step in range(1, 41):  # with gaps, several records of a step, damage between and after them
        lines += [b'{"step": %d, "elapsed": %d.5}\n' % (step, step)] * random.choice([0, 1, 1, 2])
        lines += random.sample(DAMAGED, random.choice([0, 0, 1]))
    for step in range(-1, 43):
        path.write_bytes(b"".join(lines) + end)
        MetricsFile(path, step=step).close()
        expected = [line for line in lines if b"elapsed" in line and until(line, step)]
        found = path.read_bytes()
        assert b"".join(lines).startswith(found)
        assert [line for line in found.splitlines(keepends=True) if line in expected] == expected
        assert found == b"" or until(found.splitlines()[-1], step)


def until(line: bytes, step: int) -> bool:
    return json.loads(line)["step"] <= step


def test_a_record_without_its_newline_is_kept(state: TrainState) -> None:
    assert state.run_dir
    path = state.run_dir / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "elapsed": 7.0}')
    file = MetricsFile(path, step=2)
    file.write({"step": 3})
    file.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2, "elapsed": 7.0}\n{"step": 3}\n'
    assert file.elapsed == 7


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        for start in range(0, 700_000, 10_000):
            file.writelines(
                b'{"step": %d, "loss": 2.5, "lr": 0.001, "tokens": 1000, "tokens_per_second": 9.0, '
                b'"elapsed": %d.0}\n' % (step, step)
                for step in range(start, start + 10_000)
            )
    assert path.stat().st_size > 64 << 20
    began = perf_counter()
    file = MetricsFile(path, step=123_456)
    assert perf_counter() - began < 0.5
    file.close()
    assert file.elapsed == 123_456
    with path.open("rb") as written:
        written.seek(-200, os.SEEK_END)
        assert json.loads(written.read().splitlines()[-1])["step"] == 123_456


def test_metrics_that_are_no_file_are_refused(state: TrainState) -> None:
    assert state.run_dir
    os.mkfifo(state.run_dir / "metrics.jsonl")
    with pytest.raises(
        RunError, match=r"metrics.jsonl: cannot be written: is a pipe, not a regular file"
    ):
        Log().on_fit_start(state)


def test_nothing_is_made_where_a_run_folder_was_moved_away(state: TrainState) -> None:
    assert state.run_dir
    moved = state.run_dir.with_name("moved")
    away = partial(state.run_dir.rename, moved)
    with pytest.raises(RunError, match="cannot be written: No such file or directory"):
        train(Log(every=1, sample_tokens=5), state, until=2, each_step=away, eval_every=1)
    assert not state.run_dir.exists()
    assert len((moved / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_pipe_gets_plain_lines_on_stderr(
    state: TrainState, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # colours are no reason to redraw lines in a file
    monkeypatch.setenv("COLUMNS", "20")
    train(Log(every=2, sample_tokens=5, sample_seed=7), state)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert STEP_LINE.fullmatch(lines[0])
    assert lines[1:4] == [
        "step 2/4  val loss 1.0000",
        "  | a [bold]sample[/bold] :smile:",
        "  | 5 7",
    ]
    assert len(lines) == 8


def test_a_terminal_gets_one_live_line_and_its_cursor_back(state: TrainState) -> None:
    with redirect_stderr(Terminal()) as terminal:
        train(Log(every=2, sample_tokens=5), state)
    shown = terminal.getvalue()
    assert "step 2/4  val loss 1.0000\n" in shown
    assert "  | a [bold]sample[/bold] :smile:\n" in shown
    last = ESCAPE.sub("", shown).splitlines()[-1]
    for word in ("4/4", "loss 0.2000", "val 0.5000", "lr 1.0e-01", "grad 0.50", "eta 0:00"):
        assert word in last
    assert shown.index("\x1b[?25l") < shown.index("\x1b[?25h")


def test_no_color_is_honoured(state: TrainState, monkeypatch: pytest.MonkeyPatch) -> None:
    def colours() -> bool:
        state.step = 0
        with redirect_stderr(Terminal()) as terminal:
            train(Log(), state)
        return bool(re.search(r"\x1b\[[\d;]*[39]\dm", terminal.getvalue()))

    assert colours()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours()


def test_what_others_print_moves_above_the_live_line(state: TrainState) -> None:
    with redirect_stderr(Terminal()) as terminal:
        train(Log(), state, each_step=lambda: print("a warning", file=sys.stderr))
    assert terminal.getvalue().count("a warning\n") == 4


def test_stdout_is_left_alone(state: TrainState, capsys: pytest.CaptureFixture[str]) -> None:
    with redirect_stderr(Terminal()) as terminal:
        train(Log(), state, each_step=lambda: print("a result"))
    assert capsys.readouterr().out == "a result\n" * 4
    assert "a result" not in terminal.getvalue()


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    console = Console(file=Terminal())
    assert isinstance(open_display(console, step=0, steps=4), PlainDisplay)


@pytest.mark.parametrize("width", [1, 8, 20, 40, 60, 80, 200])
def test_the_live_line_never_wraps(width: int) -> None:
    record = {
        "step": 9, "loss": 2.1, "lr": 1e-3, "grad_norm": 0.8, "tokens_per_second": 1e6, "eta": 4.0
    }  # fmt: skip
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, color_system=None)
    display = LiveDisplay(console, step=0, steps=1000)
    display.show(record)
    display.close()
    display.close()
    rows = ESCAPE.sub("", stream.getvalue()).split("\n")
    assert len(rows) == 2
    assert all(len(drawn) <= max(1, width - len("^C")) for row in rows for drawn in row.split("\r"))


def test_a_narrow_line_keeps_what_matters_most() -> None:
    record = {"step": 9, "loss": 2.1, "val_loss": 2.0, "lr": 1e-3, "grad_norm": 0.8, "eta": 4000.0}
    texts = [fitted(record, 100, width=width) for width in range(100)]
    assert texts[99] == "9/100 loss 2.1000 val 2.0000 lr 1.0e-03 grad 0.80 eta 1:06:40"
    assert texts[45] == "9/100 loss 2.1000 val 2.0000 eta 1:06:40"
    assert texts[20] == "9/100 loss 2.1000"
    assert texts[0] == "9/100"
    assert all(len(text) <= max(width, 5) for width, text in enumerate(texts))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0:00"), (42, "0:42"), (59.7, "1:00"), (3599.9, "1:00:00"), (360_000, "100:00:00")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_sample_cannot_steer_the_terminal() -> None:
    assert quote("a\tb\x1b[2J\n\n\x9bc\r") == "  | a\tb\ufffd[2J\n  | \n  | \ufffdc\ufffd"
    assert quote("\u202eabc\u2028\u2067") == "  | \ufffdabc\ufffd\ufffd"


def test_a_long_line_of_a_sample_goes_on_without_the_bar() -> None:
    assert quote("ab cd ef\n\n対話で", width=9).splitlines() == [
        "  | ab cd",
        "     ef",
        "  | ",
        "  | 対話",
        "    で",
    ]
    assert quote("対", width=1) == "  | 対"


def test_a_sample_in_any_language_stays_as_it_is() -> None:
    text = "\u3000吾輩は\u00a0« Où\u202f? »\u00adمی\u200cخو\u200e क्\u200dष 👩\u200d🚀\ufe0f \ue000"
    assert quote(f"{text}\r\nb") == f"  | {text}\n  | b"


def test_samples_are_files_in_the_codecs_format(state: TrainState) -> None:
    train(Log(sample_tokens=9, sample_seed=3), state)
    assert state.run_dir
    files = sorted((state.run_dir / "samples").iterdir())
    assert [file.name for file in files] == ["step-00000002.txt", "step-00000004.txt"]
    assert files[0].read_bytes() == b"a [bold]sample[/bold] :smile:\n9 3"


def test_pictures_are_not_printed(state: TrainState, capsys: pytest.CaptureFixture[str]) -> None:
    state.codec, state.sample = PictureCodec(), lambda tokens, seed, prompt="": b"\x89PNG\xff"
    train(Log(), state)
    assert state.run_dir
    assert (state.run_dir / "samples" / "step-00000004.png").read_bytes() == b"\x89PNG\xff"
    assert "PNG" not in capsys.readouterr().err


def test_every_prompt_is_continued(state: TrainState, capsys: pytest.CaptureFixture[str]) -> None:
    train(Log(sample_tokens=9, sample_prompts=["to be", "or"]), state)
    assert state.run_dir
    files = {file.name: file.read_text() for file in (state.run_dir / "samples").iterdir()}
    assert sorted(files) == [
        f"step-0000000{step}-{number}.txt" for step in (2, 4) for number in (1, 2)
    ]
    assert files["step-00000004-2.txt"] == "ora [bold]sample[/bold] :smile:\n9 1"
    assert "  | to bea [bold]" in capsys.readouterr().err


def test_a_prompt_that_the_codec_cannot_read_is_an_error_at_the_start(state: TrainState) -> None:
    class Strict(LetterCodec):
        def encode(self, prompt: str) -> list[int]:
            if "?" in prompt:
                raise PromptError("prompt: no '?' in the alphabet", hint="leave it out")
            return super().encode(prompt)

    state.codec = Strict()
    with pytest.raises(PromptError, match=r"^sample_prompts: 'what\?': prompt: no '\?'") as caught:
        train(Log(sample_prompts=["a", "what?"]), state)
    assert caught.value.hint == "leave it out"
    assert state.step == 0


def test_the_losses_of_further_weights_are_logged(
    state: TrainState, capsys: pytest.CaptureFixture[str]
) -> None:
    state.val_losses = {"ema": 0.25}
    train(Log(every=2, sample_tokens=0), state)
    assert metrics(state)[-1] == {"step": 4, "val_loss": 0.5, "val_loss_ema": 0.25}
    assert "val_loss_ema" not in metrics(state)[-2]
    assert "step 4/4  val loss 0.5000  ema loss 0.2500\n" in capsys.readouterr().err


def test_zero_tokens_draw_no_sample(state: TrainState) -> None:
    train(Log(sample_tokens=0), state)
    assert state.run_dir
    assert not (state.run_dir / "samples").exists()


def test_without_a_run_folder_nothing_is_written(
    state: TrainState, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, state.run_dir = state.run_dir, None
    train(Log(every=2), state)
    assert folder
    assert list(folder.iterdir()) == []
    assert "step 4/4  val loss 0.5000" in capsys.readouterr().err


def test_evaluations_do_not_count_as_training_time(
    state: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]  # a clock that stands still but for what the test says
    monkeypatch.setattr("gptkit.contract.recorder.perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    def slow_sample(tokens: int, seed: int, prompt: str = "") -> bytes:
        wait(4)
        return b"slow"

    state.sample = slow_sample
    train(Log(every=1), state, eval_every=1, each_step=lambda: wait(0.5))
    rates = [r["tokens_per_second"] for r in metrics(state) if "loss" in r]
    assert rates == [64 / 0.5] * 4
    assert metrics(state)[-2]["elapsed"] == 3 * 4.5 + 0.5


def test_early_stop_has_a_last_line(state: TrainState) -> None:
    def stop_at_two() -> None:
        state.stop = state.step == 2

    train(Log(every=10), state, each_step=stop_at_two)
    assert losses(state) == [(2, "val_loss"), (3, "loss")]


def test_an_error_leaves_the_last_complete_step_in_the_file(state: TrainState) -> None:
    def diverge_at_three() -> None:
        if state.step == 3:
            state.loss = torch.tensor(math.nan)
            raise ZeroDivisionError

    with redirect_stderr(Terminal()) as terminal, pytest.raises(ZeroDivisionError):
        train(Log(every=10), state, each_step=diverge_at_three)
    assert losses(state) == [(2, "val_loss"), (3, "loss")]
    assert metrics(state)[-1]["loss"] == 0.25
    assert terminal.getvalue().count("\x1b[?25h") == 1


def test_fit_end_is_safe_before_after_and_instead_of_everything(state: TrainState) -> None:
    log = Log()
    log.on_fit_end(state)
    train(log, state)
    log.on_fit_end(state)
    assert len(metrics(state)) == 3


def test_a_start_that_fails_is_cleaned_up(state: TrainState) -> None:
    assert state.run_dir
    (state.run_dir / "metrics.jsonl").mkdir()
    log = Log()
    with pytest.raises(RunError, match="is a folder, not a regular file"):
        train(log, state)
    (state.run_dir / "metrics.jsonl").rmdir()
    train(log, state)
    assert losses(state)[-1] == (4, "val_loss")


@pytest.mark.parametrize("log", [Log(), Log(every=3, sample_tokens=0)])
def test_contract(log: Log, tmp_path: Path) -> None:
    check_callback(log, tmp_path)
