"""Every line of "bad input": a clear error, the right exit code, nothing half-written."""

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from gptkit.errors import CheckpointError, GptkitError, PluginError
from gptkit.plugin import EVENTS
from gptkit.runs import checkpoint
from gptkit.runs import train as run
from gptkit.runs.loaded import load_checkpoint
from gptkit.runs.state import FORMAT

Command = Callable[..., Result]
Install = Callable[..., Path]
TinyRecipe = Callable[..., Path]


@pytest.fixture
def refused(cli: Command, tmp_path: Path, cache: Path) -> Callable[..., str]:
    """Runs a command that must fail and leave everything as it was; gives its error."""

    def call(*arguments: object, exit_code: int) -> str:
        before = contents(tmp_path), contents(cache)
        result = cli(*arguments)
        assert (result.exit_code, result.stdout) == (exit_code, ""), result.output
        assert result.stderr.startswith("error: ")
        assert (contents(tmp_path), contents(cache)) == before
        return result.stderr

    return call


@pytest.fixture
def trained(tiny_recipe: TinyRecipe, tmp_path: Path) -> Path:
    """A run folder with the checkpoints 2 and 4."""
    return run.train(tiny_recipe(), out=tmp_path / "r", report=print).path


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Everything below a folder but Python's compiled files; None for folders."""
    found = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return {path: path.read_bytes() if path.is_file() else None for path in found}


# The recipe and its data.


def test_a_recipe_that_is_missing(refused: Callable[..., str]) -> None:
    for command in ("train", "check"):
        error = refused(command, "nope.toml", exit_code=2)
        assert error.startswith("error: nope.toml: no such recipe\n")


def test_a_recipe_with_unknown_keys_wrong_types_and_sizes(
    refused: Callable[..., str], tiny_recipe: TinyRecipe
) -> None:
    path = tiny_recipe(train={"stpes": 4, "eval_every": "often"}, model={"n_embd": 15})
    error = refused("train", path, "--out", "r", exit_code=2)
    assert 'train.stpes: unknown key; did you mean "steps"?' in error
    assert "train.eval_every: should be a whole number, got 'often'" in error
    assert "model: n_embd 15 should be divisible by n_head 2" in error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "x.txt: the text is empty"),
        (b"a", "x.txt: the text has only one character, 'a', repeated"),
        (b"a" * 500, "x.txt: the text has only one character, 'a', repeated"),
        (b"ab" * 8, "x.txt: too short for block_size 16"),
        (b"ab" * 80, "x.txt: too short for block_size 16: 144 characters for training and 16 for"),
        (b"ab" * 99 + b"\xff", "x.txt: not UTF-8: bad byte 0xff at offset 198"),
    ],
    ids=["empty", "one", "same", "short", "no validation window", "not UTF-8"],
)
def test_a_text_that_cannot_be_trained_on(
    refused: Callable[..., str], tiny_recipe: TinyRecipe, tmp_path: Path, text: bytes, said: str
) -> None:
    (tmp_path / "x.txt").write_bytes(text)
    error = refused("train", tiny_recipe(dataset={"path": "x.txt"}), exit_code=2)
    assert said in error
    assert "\nhint:  " in error


def test_the_shortest_text_that_can_be_trained_on(
    cli: Command, tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    (tmp_path / "x.txt").write_text("ab" * 85)  # 17 characters for validation: one window
    path = tiny_recipe(dataset={"path": "x.txt"}, train={"steps": 1})
    assert cli("train", path, "--out", "r").exit_code == 0
    assert json.loads(cli("eval", "r", "--json").stdout)["tokens"] == 16


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nope.txt", "nope.txt: no such file or folder"),
        ("folder", "folder: no file in this folder ends in .txt"),
        ("tiny.toml/x.txt", "x.txt: no such file or folder"),
    ],
)
def test_a_text_that_is_missing(
    refused: Callable[..., str], tiny_recipe: TinyRecipe, tmp_path: Path, path: str, said: str
) -> None:
    (tmp_path / "folder").mkdir()
    error = refused("train", tiny_recipe(dataset={"path": path}), exit_code=2)
    assert said in error


@pytest.mark.parametrize(("train", "val"), [(0, 9), (9, 0)])
def test_a_foreign_dataset_with_an_empty_split(
    refused: Callable[..., str],
    distribution: Install,
    tiny_recipe: TinyRecipe,
    train: int,
    val: int,
) -> None:
    source = f"""
        import torch
        from gptkit.plugin import Data, Dataset, Split
        from gptkit_char_text.codec import CharCodec

        class Zeros(Split):
            def __init__(self, size):
                self.size = size

            def __len__(self):
                return self.size

            def __getitem__(self, indices):
                x = torch.zeros(len(indices), 16, dtype=torch.int64)
                return x, x

        class Empty(Dataset):
            contract = 1

            def load(self):
                codec = CharCodec(vocabulary="ab")
                return Data(Zeros({train}), Zeros({val}), codec, vocab_size=2, block_size=16)
    """
    distribution("acme-empty", source, datasets="empty = Empty")
    error = refused("train", tiny_recipe(dataset={"use": "empty"}), "--out", "r", exit_code=2)
    name = "validation" if train else "training"
    assert f"error: the {name} split is shorter than one window of 16 tokens" in error


# Checkpoints and run folders.


def reload(trained: Path, step: int = 4) -> None:
    load_checkpoint(trained, checkpoint=str(step))


def test_a_single_wrong_byte_in_the_weights(trained: Path) -> None:
    file = trained / "checkpoints" / "step-00000004" / "model.safetensors"
    whole = file.read_bytes()
    for position in [*range(16), *range(16, len(whole), 997), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[position] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model.safetensors: damaged or incomplete"):
            reload(trained)
    for size in (0, 1, 8, 100, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"model.safetensors: damaged or incomplete"):
            reload(trained)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors: damaged or incomplete"):
        reload(trained)
    reload(trained, step=2)


def test_a_truncated_state(trained: Path) -> None:
    file = trained / "checkpoints" / "step-00000004" / "state.json"
    whole = file.read_bytes()
    for size in range(0, len(whole) - 2, 53):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"state.json: damaged or incomplete"):
            reload(trained)


def test_a_single_wrong_byte_in_the_state_never_goes_unnoticed(trained: Path) -> None:
    folder = trained / "checkpoints" / "step-00000004"
    good = checkpoint.load_state(folder)
    whole = (folder / "state.json").read_bytes()
    unnoticed = []
    for position in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        (folder / "state.json").write_bytes(damaged)
        try:
            if checkpoint.load_state(folder) != good:
                unnoticed.append(bytes(damaged[max(0, position - 15) : position + 5]))
        except CheckpointError:
            pass
    assert unnoticed == []


def test_a_damaged_checkpoint_on_the_command_line(
    refused: Callable[..., str], trained: Path
) -> None:
    file = trained / "checkpoints" / "step-00000004" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    for command in ("sample", "eval"):
        error = refused(command, "r", exit_code=1)
        assert "step-00000004/model.safetensors: damaged or incomplete: its sha256 is not" in error
        assert "hint:  --checkpoint STEP takes another" in error


def test_a_checkpoint_of_a_newer_format(refused: Callable[..., str], trained: Path) -> None:
    file = trained / "checkpoints" / "step-00000004" / "state.json"
    newer = json.loads(file.read_text()) | {"format": FORMAT + 1, "mixture": [1, 2]}
    del newer["codec"]
    file.write_text(json.dumps(newer))
    error = refused("sample", "r", exit_code=1)
    assert f"written in format {FORMAT + 1}, this gptkit reads" in error
    assert "hint:  pip install --upgrade gptkit" in error


def test_a_checkpoint_whose_codec_is_not_installed(
    refused: Callable[..., str], distribution: Install, tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    source = """
        from gptkit_char_text.codec import CharCodec
        from gptkit_char_text.dataset import CharText
        from gptkit.plugin import Data

        class Runes(CharCodec):
            pass

        class RuneText(CharText):
            def load(self):
                data = super().load()
                codec = Runes(vocabulary=data.codec.vocabulary)
                return Data(data.train, data.val, codec, data.vocab_size, data.block_size)
    """
    entries = {"datasets": "runes = RuneText", "codecs": "runes = Runes"}
    site = distribution("acme-runes", source, **entries)
    recipe = tiny_recipe(dataset={"use": "runes", "block_size": 16})
    trained = run.train(recipe, out=tmp_path / "r", report=print)
    shutil.rmtree(next(site.glob("*.dist-info")))
    error = refused("sample", trained.path, exit_code=2)
    assert 'error: the codec "runes" that this model needs is not installed' in error
    assert "hint:  pip install acme-runes" in error


def test_a_run_folder_without_checkpoints(refused: Callable[..., str], trained: Path) -> None:
    shutil.rmtree(trained / "checkpoints")
    for command in ("sample", "eval", "export"):
        error = refused(command, "r", exit_code=1)
        assert "error: r: has no checkpoints" in error
        assert "hint:  start it: gptkit resume r" in error


def test_a_folder_that_is_no_run(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for command in (["sample"], ["eval"], ["resume"], ["runs", "show"]):
        error = refused(*command, "photos", exit_code=2)
        assert "error: photos: not a run folder (no recipe.toml)" in error


def test_a_damaged_environment_does_not_hide_the_run(cli: Command, trained: Path) -> None:
    (trained / "environment.json").write_text('{"device": "c')
    for command in (["runs", "show", "r"], ["runs", "show", "r", "--json"], ["eval", "r"]):
        result = cli(*command)
        assert result.exit_code == 0 or result.stderr.startswith("error: r/environment.json")


def test_a_damaged_recipe_of_a_run(refused: Callable[..., str], trained: Path) -> None:
    (trained / "recipe.toml").write_text("seed = ")
    for command in ("resume", "eval"):
        assert "error: r/recipe.toml: not valid TOML: " in refused(command, "r", exit_code=2)


# Places that cannot be looked at, or written.


def test_paths_that_the_system_refuses(
    refused: Callable[..., str], tiny_recipe: TinyRecipe
) -> None:
    long = "x" * 300
    for command in (
        ("train", tiny_recipe(), "--out", long), ("resume", long),
        ("sample", long), ("export", long), ("runs", "show", long), ("plugins", "new", long),
    ):  # fmt: skip
        error = refused(*command, exit_code=2)
        assert error.startswith("error: x") and ": File name too long\nhint:  check " in error
        assert len(error) < 300


def test_a_working_folder_that_was_deleted(
    cli: Command, tiny_recipe: TinyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    result = cli("train", tiny_recipe(), "--set", "dataset.path=a.txt")
    assert result.exit_code == 1
    assert result.stderr == (
        "error: the working folder was deleted or moved\nhint:  cd to another one\n"
    )


@pytest.mark.parametrize("place", ["/proc/nope/run", "tiny.toml/run"])
def test_a_place_that_cannot_be_written(
    refused: Callable[..., str], tiny_recipe: TinyRecipe, place: str
) -> None:
    error = refused("train", tiny_recipe(), "--out", place, exit_code=1)
    assert error.startswith(f"error: {place}: cannot be written: ")
    assert "\nhint:  choose another folder: --out DIR\n" in error


def test_a_cache_that_cannot_be_written(
    refused: Callable[..., str], tiny_recipe: TinyRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTKIT_CACHE", "/proc/nope")
    error = refused("train", tiny_recipe(), "--out", "r", exit_code=1)
    assert "the cache cannot be written" in error
    assert "GPTKIT_CACHE" in error


def limited(size: int) -> Callable[[], None]:
    """Makes every write beyond a size fail, as on a full disk; for a new process."""
    resource = pytest.importorskip("resource", reason="only Unix limits the size of files")
    return partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))


def test_a_disk_that_is_full_while_saving(
    gptkit: Callable[..., Any], tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    out = tmp_path / "r"
    run.train(tiny_recipe(train={"steps": 8, "keep": 9}), out=out, report=print)
    last = out / "checkpoints" / "step-00000008"
    weights = (last / "model.safetensors").read_bytes()
    moments = (last / "optimizer.safetensors").stat().st_size
    shutil.rmtree(last)
    earlier = contents(out / "checkpoints")
    result = gptkit("resume", "r", preexec_fn=limited((len(weights) + moments) // 2))
    assert result.returncode == 1
    assert result.stdout == ""
    assert "error: r/checkpoints/step-00000008: cannot be saved: " in result.stderr
    hint = "hint:  free some space, then gptkit resume continues the run"
    assert hint in result.stderr
    assert "Traceback" not in result.stderr
    assert contents(out / "checkpoints") == earlier
    run.resume(out, report=print)
    assert (last / "model.safetensors").read_bytes() == weights


def test_a_disk_that_is_full_from_the_start(
    gptkit: Callable[..., Any], tiny_recipe: TinyRecipe, trained: Path, tmp_path: Path
) -> None:
    result = gptkit("train", tiny_recipe(), "--out", "full", preexec_fn=limited(100))
    assert result.returncode == 1
    assert result.stderr.startswith("error: full/environment.json: cannot be written: ")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "full").exists(), "what is left would stand in the next run's way"


# Plugins that fail while they run.

RAISING = """
    from pathlib import Path
    from gptkit.plugin import Callback

    class Raising(Callback):
        contract = 1
        event: str

    def method(event):
        def call(self, state):
            if event == self.event:
                raise LookupError(f"broken in {event}")
        return call

    for event in (
        "on_fit_start", "on_step_start", "on_backward_end",
        "on_step_end", "on_eval_end", "on_save_end", "on_fit_end",
    ):
        setattr(Raising, event, method(event))

    class Witness(Callback):
        contract = 1

        def on_fit_end(self, state):
            (state.run_dir / "closed").write_text(str(state.step))
"""


@pytest.fixture
def raising(distribution: Install, tiny_recipe: TinyRecipe) -> Callable[[str], tuple[Path, Path]]:
    """A recipe with a callback that raises in an event, and where that callback is installed."""

    def write(event: str) -> tuple[Path, Path]:
        site = distribution("acme-raising", RAISING, callbacks="raising = Raising")
        (info,) = site.glob("*.dist-info")
        entries = "[gptkit.callbacks]\nraising = acme_raising:Raising\n"
        (info / "entry_points.txt").write_text(f"{entries}witness = acme_raising:Witness\n")
        callbacks = [{"use": "witness"}, {"use": "raising", "event": event}, {"use": "witness"}]
        return tiny_recipe(callbacks=callbacks), site

    return write


@pytest.mark.parametrize(
    ("event", "step"), list(zip(EVENTS, [0, 0, 0, 1, 2, 2, 4], strict=True)), ids=EVENTS
)
def test_an_exception_in_an_event_says_whose_it_was_and_when(
    raising: Callable[[str], tuple[Path, Path]], tmp_path: Path, event: str, step: int
) -> None:
    recipe, _ = raising(event)
    with pytest.raises(LookupError, match=f"broken in {event}") as caught:
        run.train(recipe, out=tmp_path / "r", report=print)
    said = f"raised by callbacks[1] (raising, acme-raising 1.2) in {event} at step {step}"
    assert caught.value.__notes__[0] == said
    assert (tmp_path / "r" / "closed").read_text() == str(step)
    saved = [path.name for path in checkpoint.step_folders(tmp_path / "r" / "checkpoints")]
    assert saved == {
        0: [], 1: ["step-00000001"], 2: ["step-00000002"], 4: ["step-00000002", "step-00000004"],
    }[step]  # fmt: skip


def test_a_recipe_may_let_a_callback_fail(
    raising: Callable[[str], tuple[Path, Path]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, _ = raising("on_step_end")
    run.train(recipe, ["callbacks[1].on_error=warn"], out=tmp_path / "r", report=print)
    label = "callbacks[1] (raising, acme-raising 1.2)"
    fault = "LookupError: broken in on_step_end; training goes on"
    assert capfd.readouterr().err.splitlines() == [
        f"warning: {label} failed in on_step_end at step 1: {fault}",
        f"warning: {label} failed 4 times (on_step_end 4)",
    ]
    saved = [path.name for path in checkpoint.step_folders(tmp_path / "r" / "checkpoints")]
    assert saved == ["step-00000002", "step-00000004"]


def test_an_exception_in_an_event_keeps_its_traceback(
    raising: Callable[[str], tuple[Path, Path]], gptkit: Callable[..., Any], tmp_path: Path
) -> None:
    recipe, site = raising("on_step_end")
    result = gptkit("train", recipe, "--out", "r", env={"PYTHONPATH": str(site)})
    assert (result.returncode, result.stdout) == (1, "")
    assert "Traceback (most recent call last)" in result.stderr
    assert re.search(r'File ".*acme_raising.py", line \d+, in call', result.stderr)
    assert result.stderr.endswith(
        "LookupError: broken in on_step_end\n"
        "raised by callbacks[1] (raising, acme-raising 1.2) in on_step_end at step 1\n"
        "step 1 is saved: gptkit resume continues after it\n"
    )
    assert (tmp_path / "r" / "closed").read_text() == "1"


BAD_DATA = """
    from gptkit.plugin import Dataset

    class Bad(Dataset):
        contract = 1
        kind: str

        def load(self):
            return None if self.kind == "nothing" else [][0]
"""


@pytest.mark.parametrize(
    ("kind", "error", "fault"),
    [
        ("nothing", PluginError, r"^load\(\) should return Data, got NoneType"),
        ("bug", IndexError, "list index out of range"),
    ],
)
def test_a_data_set_that_cannot_be_loaded_is_named(
    kind: str, error: type[Exception], fault: str,
    distribution: Install, tiny_recipe: TinyRecipe, tmp_path: Path,
) -> None:  # fmt: skip
    distribution("acme-bad", BAD_DATA, datasets="bad = Bad")
    with pytest.raises(error, match=fault) as caught:
        run.train(tiny_recipe(dataset={"use": "bad", "kind": kind}), report=print)
    assert caught.value.__notes__ == ["raised by the data set bad (acme-bad 1.2) in load"]


WRONG_DATA = """
    import json
    import random

    import torch
    from gptkit.plugin import IGNORE, Data, Dataset, Split
    from gptkit.testing import LetterCodec

    def bad_id(x, y, i):
        x[i == 99] = 26
        return x, y

    CHANGES = {
        "transposed": lambda x, y, i: (x.T, y.T),
        "short": lambda x, y, i: (x[1:], y[1:]),
        "random": lambda x, y, i: (torch.randint(26, x.shape), y),
        "numpy": lambda x, y, i: (x.numpy(), y.numpy()),
        "int32": lambda x, y, i: (x.int(), y.int()),
        "float": lambda x, y, i: (x, y.float()),
        "1-d": lambda x, y, i: (x.flatten(), y.flatten()),
        "no tuple": lambda x, y, i: torch.stack([x, y]),
        "negative": lambda x, y, i: (x - 1, y),
        "one bad id": bad_id,
        "masked": lambda x, y, i: (x, y.fill_(IGNORE)),
    }

    EXTRAS = {"codec with NaN": float("nan"), "codec with a set": {1}, "codec of objects": object()}

    class Wrong(Split):
        def __init__(self, kind):
            self.change = CHANGES.get(kind, lambda x, y, i: (x, y))
            self.labels = {
                "labels": torch.zeros(100, dtype=torch.int64),
                "list of labels": [0] * 100,
                "float labels": torch.zeros(100),
                "many labels": torch.arange(100),
            }.get(kind)
            if kind == "random order":
                self.indices = lambda seed, step, size: torch.randint(100, (size,))
            if kind == "stride":
                self.stride = 0

        def __len__(self):
            return 100

        def __getitem__(self, indices):
            x = (indices[:, None] + torch.arange(6)) % 26
            return self.change(x, (x + 1) % 26, indices)

    class Letters(LetterCodec):
        contract = 1
        model_config = {"arbitrary_types_allowed": True}
        extra: object = None

    class WrongData(Dataset):
        contract = 1
        kind: str

        def load(self):
            classes = ("a",) if "labels" in self.kind or self.kind == "classes" else ()
            return Data(
                Wrong(self.kind), Wrong(self.kind), Letters(extra=EXTRAS.get(self.kind)),
                block_size=6,
                vocab_size=0 if self.kind == "vocab_size 0" else 26,
                classes=() if self.kind == "labels" else classes,
            )
"""


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (
            "transposed",
            "x of Wrong[indices] must have the shape (B, block_size) = (4, 6), not (6, 4)",
        ),
        ("short", "x of Wrong[indices] must have the shape (B, block_size) = (4, 6), not (3, 6)"),
        ("random", "Wrong[indices] must depend on the index alone: item 0 differs"),
        ("random order", "Wrong.indices(seed, step, batch_size) must give the same"),
        ("numpy", "x of Wrong[indices] must be a tensor, not ndarray"),
        ("int32", "x of Wrong[indices] must be int64, not torch.int32"),
        ("float", "y of Wrong[indices] must be int64, not torch.float32"),
        ("1-d", "x of Wrong[indices] must have the shape (B, block_size)"),
        ("no tuple", "Wrong[indices] must give (x, y)"),
        ("negative", "x of Wrong[indices] must be in 0 .. 25: there is -1"),
        ("one bad id", "x of Wrong[indices] must be in 0 .. 25: there is 26"),
        ("masked", "the batch of step 1 of the data set wrong-data (acme-wrong 1.2): every"),
        ("classes", "Data has classes, but Data.train.labels is None"),
        ("labels", "Data.train has labels, but Data.classes is empty"),
        ("list of labels", "Data.train.labels must be a tensor, not list"),
        ("float labels", "Data.train.labels must be int64"),
        ("many labels", "Data.train.labels must be in 0 .. 0"),
        ("stride", "Wrong.stride must be 1 .. block_size (6), not 0"),
        ("vocab_size 0", "should hold ids below vocab_size, 0"),
        ("codec with NaN", "Letters: a checkpoint cannot hold its fields"),
        ("codec with a set", "Letters: a checkpoint cannot hold its fields"),
        ("codec of objects", "Letters: a checkpoint cannot hold its fields"),
        ("fine", ""),
    ],
)
def test_a_data_set_that_would_train_something_wrong_is_named(
    kind: str, fault: str,
    distribution: Install, tiny_recipe: TinyRecipe, cli: Callable[..., Any], tmp_path: Path,
) -> None:  # fmt: skip
    distribution(
        "acme-wrong", WRONG_DATA, datasets="wrong-data = WrongData", codecs="letters = Letters"
    )
    recipe = tiny_recipe(dataset={"use": "wrong-data", "kind": kind}, callbacks=[])
    result = cli("train", recipe, "--set", "train.steps=1", "--out", "r")
    assert result.exit_code == (2 if fault else 0), result.output
    if fault:
        assert fault in result.stderr
        assert "wrong-data (acme-wrong 1.2)" in result.stderr
        assert not (tmp_path / "r" / "checkpoints").exists()


def test_an_error_of_the_user_in_an_event_says_whose_it_was_without_a_traceback(
    tiny_recipe: Callable[..., Path], cli: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = tiny_recipe(callbacks=[{"use": "log", "sample_prompts": ["to be", "\u65e5"]}])
    result = cli("train", recipe, "--out", "r")
    assert result.exit_code == 2
    error, note, hint = result.stderr.splitlines()[-3:]
    assert error.startswith("error: sample_prompts: '\u65e5': ")
    assert re.fullmatch(
        r"note:  raised by callbacks\[0\] \(log, gptkit-log .*\) in on_fit_start at step 0", note
    )
    assert hint.startswith("hint:  ")


def test_every_error_has_an_exit_code_of_the_table() -> None:
    kinds = [GptkitError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert {kind.exit_code for kind in kinds} <= {1, 2, 3, 4}
