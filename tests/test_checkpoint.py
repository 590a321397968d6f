import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from gptkit.errors import CheckpointError
from gptkit.recipe.codec_record import CodecRecord
from gptkit.recipe.options import GPTConfig
from gptkit.runs import checkpoint, checkpoint_writer
from gptkit.runs.state import State

RECORD: dict[str, Any] = {
    "gptkit": "0.1.0",
    "config": GPTConfig(preset="gpt-nano", vocab_size=26, block_size=8, position="rotary"),
    "dataset": "letters",
    "codec": CodecRecord(name="letters", distribution="gptkit-letters", options={"a": ["ß", 1]}),
}
DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.int8,
    torch.int32,
    torch.int64,
    torch.bool,
)


def state(step: int = 5, **moment: Any) -> State:
    plain = {"val_loss": None, "val_step": None, "optimizer_groups": [], "callbacks": []}
    return State(step=step, **RECORD | plain | moment)


def files(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model": {"wte.weight": torch.randn(26, 4, generator=generator)},
        "optimizer": {"wte.weight:step": torch.tensor(3.0), "generator:cpu": torch.get_rng_state()},
        "callbacks": {},
    }


def edit(step_folder: Path, *, without: str | None = None, **changes: Any) -> None:
    """Change what `state.json` says, or remove a key, and seal it anew."""
    path = step_folder / "state.json"
    values = json.loads(path.read_text()) | changes
    values.pop(without, None)
    path.write_text(json.dumps(values))
    seal = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name("state.json.sha256").write_text(f"{seal}\n")


def flip_a_byte(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """The system refuses to let a file of this process grow beyond `size` bytes."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    before = state(
        val_loss=1.1000000000000001,
        val_step=4,
        optimizer_groups=[{"lr": 1e-3 / 3, "weight_decay": 0.0, "fused": True, "steps": 7}],
        callbacks=[{}, {"best": 0.1 + 0.2, "history": [1, {"ü": None}], "name": "x"}],
    )
    folder = checkpoint_writer.save(tmp_path, before, files())
    after, _ = checkpoint.load(folder)
    assert folder == tmp_path / "step-00000005"
    assert after.model_copy(update={"sha256": {}}) == before
    assert after.optimizer_groups[0]["fused"] is True
    assert isinstance(after.optimizer_groups[0]["weight_decay"], float)
    assert after.sha256.keys() == {"model.safetensors", "optimizer.safetensors"}


LONG_CODEC = CodecRecord(name="a", distribution="b", options={"words": ["ß"] * 20_000})


def test_a_long_codec_has_a_file_of_its_own(tmp_path: Path) -> None:
    folder = checkpoint_writer.save(tmp_path, state(codec=LONG_CODEC), files())
    light = checkpoint.load_state(folder)
    assert (folder / "state.json").stat().st_size < 5_000
    assert light.codec == LONG_CODEC.model_copy(update={"options": {}})
    assert "codec.json" in light.sha256
    loaded, tensors = checkpoint.load(folder)
    assert loaded.codec == LONG_CODEC
    assert tensors.keys() == {"model", "optimizer"}


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_numbers_of_callbacks_come_back(tmp_path: Path, value: float) -> None:
    folder = checkpoint_writer.save(
        tmp_path, state(callbacks=[{"best": value, "all": [value]}]), files()
    )
    assert checkpoint.load_state(folder).callbacks == [{"best": value, "all": [value]}]


def test_tensors_of_every_dtype_and_shape_come_back(tmp_path: Path) -> None:
    shapes = [(), (3,), (2, 3), (0,), (2, 0, 3)]
    tensors = {
        f"{dtype}:{shape}": torch.randint(0, 2, shape).to(dtype)
        for dtype, shape in itertools.product(DTYPES, shapes)
    }
    folder = checkpoint_writer.save(tmp_path, state(), files() | {"callbacks": tensors})
    _, after = checkpoint.load(folder)
    assert same(after["callbacks"], tensors)


def test_tensors_may_be_views_parameters_and_the_same(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    parameter = torch.nn.Parameter(torch.ones(2))
    tensors = {
        "row": whole[1],
        "transposed": whole.T,
        "whole": whole,
        "again": whole,
        "parameter": parameter,
    }
    folder = checkpoint_writer.save(tmp_path, state(), files() | {"callbacks": tensors})
    _, after = checkpoint.load(folder)
    assert same(after["callbacks"], {k: v.detach() for k, v in tensors.items()})


def test_special_values_keep_their_bits(tmp_path: Path) -> None:
    values = torch.tensor([math.nan, math.inf, -0.0, 1e-45])
    folder = checkpoint_writer.save(tmp_path, state(), files() | {"model": {"x": values}})
    _, after = checkpoint.load(folder)
    assert torch.equal(after["model"]["x"].view(torch.int32), values.view(torch.int32))


def test_every_file_is_json_safetensors_or_a_digest(tmp_path: Path) -> None:
    checkpoint_writer.save(tmp_path, state(), files() | {"callbacks": {"0:x": torch.ones(2)}})
    found = {path.name: path for path in tmp_path.rglob("*") if path.is_file()}
    assert found.keys() == {
        "state.json",
        "state.json.sha256",
        "model.safetensors",
        "optimizer.safetensors",
        "callbacks.safetensors",
    }
    state_json = found.pop("state.json").read_bytes()
    assert isinstance(json.loads(state_json), dict)
    seal = found.pop("state.json.sha256").read_text()
    assert seal == f"{hashlib.sha256(state_json).hexdigest()}\n"
    for path in found.values():
        with safe_open(path, framework="pt") as file:  # reads the header, executes nothing
            assert file.keys()


def test_everybody_may_read_it(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        checkpoint_writer.save(tmp_path, state(), files())
    finally:
        os.umask(mask)
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in found} == {0o644}


def test_a_state_is_readable_by_people(tmp_path: Path) -> None:
    text = (checkpoint_writer.save(tmp_path, state(), files()) / "state.json").read_text()
    assert text.count("\n") > 20
    assert text.endswith("}\n")


def test_what_a_killed_process_left_is_ignored_and_swept(tmp_path: Path) -> None:
    good = checkpoint_writer.save(tmp_path, state(5), files())
    for name in (".step-00000006.tmp", ".step-00000004.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    assert checkpoint.step_folders(tmp_path) == [good]
    checkpoint.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [good]
    checkpoint.load(good)


def test_saving_takes_the_place_of_a_half_written_folder(tmp_path: Path) -> None:
    half = tmp_path / ".step-00000005.tmp"
    half.mkdir()
    (half / "leftover.safetensors").write_bytes(b"half")
    folder = checkpoint_writer.save(tmp_path, state(5), files())
    assert list(tmp_path.iterdir()) == [folder]
    assert not (folder / "leftover.safetensors").exists()
    checkpoint.load(folder)


@pytest.mark.parametrize("leftover", [False, True])
def test_saving_takes_the_place_of_a_damaged_folder(tmp_path: Path, leftover: bool) -> None:
    folder = checkpoint_writer.save(tmp_path, state(5), files(seed=1))
    truncate(folder / "model.safetensors")
    (folder / "stray").touch()
    if leftover:  # of a process that was killed while it did the same
        (tmp_path / ".step-00000005.old").mkdir()
        (tmp_path / ".step-00000005.old" / "state.json").touch()
    new = files(seed=2)
    assert checkpoint_writer.save(tmp_path, state(5), new) == folder
    _, after = checkpoint.load(folder)
    assert same(after["model"], new["model"])
    assert list(tmp_path.iterdir()) == [folder]
    assert not (folder / "stray").exists()


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    good = checkpoint_writer.save(tmp_path, state(5), files())
    with (
        files_limited_to(20_000),
        pytest.raises(CheckpointError, match=r"step-00000006: cannot be saved") as caught,
    ):
        checkpoint_writer.save(tmp_path, state(6), {"model": {"big": torch.zeros(100_000)}})
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == [good]
    checkpoint.load(good)


def test_a_full_disk_leaves_the_folder_of_the_same_step(tmp_path: Path) -> None:
    before = files(seed=1)
    folder = checkpoint_writer.save(tmp_path, state(5), before)
    with files_limited_to(20_000), pytest.raises(CheckpointError):
        checkpoint_writer.save(tmp_path, state(5), {"model": {"big": torch.zeros(100_000)}})
    _, after = checkpoint.load(folder)
    assert same(after["model"], before["model"])


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    with pytest.raises(CheckpointError, match="checkpoints/step-00000005: cannot be saved"):
        checkpoint_writer.save(tmp_path / "checkpoints", state(), files())


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", flip_a_byte),
        ("model.safetensors", Path.unlink),
        ("optimizer.safetensors", truncate),
        ("optimizer.safetensors", lambda path: path.write_bytes(b"")),
        ("codec.json", lambda path: path.write_text(path.read_text().replace("ß", "s", 1))),
        ("codec.json", truncate),
        ("codec.json", Path.unlink),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str, damage: Any) -> None:
    folder = checkpoint_writer.save(tmp_path, state(codec=LONG_CODEC), files())
    damage(folder / name)
    with pytest.raises(CheckpointError, match=rf"step-00000005/{name}: damaged or incomplete"):
        checkpoint.load(folder)


def test_a_file_that_is_no_safetensors_is_refused_though_its_checksum_holds(tmp_path: Path) -> None:
    folder = checkpoint_writer.save(tmp_path, state(), files())
    (folder / "model.safetensors").write_bytes(b"pickle")
    digests = dict(checkpoint.load_state(folder).sha256)
    edit(folder, sha256=digests | {"model.safetensors": hashlib.sha256(b"pickle").hexdigest()})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        checkpoint.load(folder)


@pytest.mark.parametrize("content", [b"", b"[1]", b"[" * 99_999, b'{"a": 1'])
def test_a_file_that_is_no_codec_is_refused_though_its_checksum_holds(
    tmp_path: Path, content: bytes
) -> None:
    folder = checkpoint_writer.save(tmp_path, state(codec=LONG_CODEC), files())
    (folder / "codec.json").write_bytes(content)
    digests = dict(checkpoint.load_state(folder).sha256)
    edit(folder, sha256=digests | {"codec.json": hashlib.sha256(content).hexdigest()})
    with pytest.raises(CheckpointError, match=r"codec\.json: damaged .*: holds no options"):
        checkpoint.load(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe{}"])
def test_a_state_that_is_no_json_object_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    folder = checkpoint_writer.save(tmp_path, state(), files())
    (folder / "state.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step-00000005/state\.json: damaged") as caught:
        checkpoint.load_state(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["step", "config", "callbacks"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    folder = checkpoint_writer.save(tmp_path, state(), files())
    edit(folder, without=key)
    with pytest.raises(CheckpointError, match=rf"state\.json: damaged or incomplete: {key}: "):
        checkpoint.load_state(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"step": -1}, "step"),
        ({"step": "many"}, "step"),
        ({"config": {"n_layer": 1}}, "config.vocab_size"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    folder = checkpoint_writer.save(tmp_path, state(), files())
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=rf"state\.json: damaged or incomplete: {named}: "):
        checkpoint.load_state(folder)


def test_a_changed_state_is_refused_though_it_reads_well(tmp_path: Path) -> None:
    folder = checkpoint_writer.save(tmp_path, state(optimizer_groups=[{"lr": 0.001}]), files())
    path = folder / "state.json"
    path.write_text(path.read_text().replace("0.001", "0.003"))
    with pytest.raises(CheckpointError, match=r"state\.json: damaged or incomplete: its sha256"):
        checkpoint.load_state(folder)


@pytest.mark.parametrize("damage", [lambda path: flip_a_byte(path, 0), truncate, Path.unlink])
def test_a_state_without_its_seal_is_refused(tmp_path: Path, damage: Any) -> None:
    folder = checkpoint_writer.save(tmp_path, state(), files())
    damage(folder / "state.json.sha256")
    with pytest.raises(CheckpointError, match=r"step-00000005/state\.json"):
        checkpoint.load_state(folder)


def test_a_newer_format_says_what_to_do(tmp_path: Path) -> None:
    folder = checkpoint_writer.save(tmp_path, state(), files())
    edit(folder, format=6, without="step", surprise={"unheard": "of"})
    with pytest.raises(CheckpointError, match=r"state\.json: written in format 6, .* 5$") as caught:
        checkpoint.load(folder)
    assert caught.value.hint == "pip install --upgrade gptkit"


def test_a_missing_step_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"step-00000009/state\.json: .*No such file"):
        checkpoint.load(tmp_path / "step-00000009")


def test_one_file_can_be_read_alone(tmp_path: Path) -> None:
    folder = checkpoint_writer.save(tmp_path, state(), files())
    (folder / "optimizer.safetensors").unlink()
    found = checkpoint.load_tensors(folder, checkpoint.load_state(folder))
    assert same(found, files()["model"])
    with pytest.raises(CheckpointError, match=r"callbacks\.safetensors"):
        checkpoint.load_tensors(folder, checkpoint.load_state(folder), "callbacks.safetensors")


def save_losses(folder: Path, losses: dict[int, float | None]) -> None:
    for step, loss in losses.items():
        measured = None if loss is None else step
        checkpoint_writer.save(folder, state(step, val_loss=loss, val_step=measured), files())


def steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoint.step_folders(folder)]


def test_step_folders_come_oldest_first(tmp_path: Path) -> None:
    save_losses(tmp_path, {100: 1.0, 9: 1.0, 20: 1.0})
    (tmp_path / "step-notes.txt").touch()
    assert steps(tmp_path) == [9, 20, 100]
    assert checkpoint.step_folders(tmp_path / "absent") == []


def test_the_best_has_the_lowest_loss_measured_at_its_own_step(tmp_path: Path) -> None:
    save_losses(tmp_path, {1: 3.0, 2: 1.0, 3: 2.0, 4: None})
    checkpoint_writer.save(
        tmp_path, state(5, val_loss=0.5, val_step=3), files()
    )  # of older weights
    assert checkpoint.best(tmp_path) == tmp_path / "step-00000002"
    (tmp_path / "step-00000002" / "state.json").write_text("{")
    assert checkpoint.best(tmp_path) == tmp_path / "step-00000003"


def test_without_losses_none_is_best(tmp_path: Path) -> None:
    assert checkpoint.best(tmp_path) is None
    save_losses(tmp_path, {1: None, 2: math.nan})
    assert checkpoint.best(tmp_path) is None


@pytest.mark.parametrize(
    ("keep", "kept"), [(1, [2, 6]), (2, [2, 5, 6]), (5, [2, 3, 4, 5, 6]), (99, [1, 2, 3, 4, 5, 6])]
)
def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path, keep: int, kept: list[int]) -> None:
    save_losses(tmp_path, {1: 4.0, 2: 1.0, 3: 3.0, 4: 2.0, 5: 5.0, 6: 6.0})
    checkpoint.prune(tmp_path, keep)
    assert steps(tmp_path) == kept
    assert sorted(tmp_path.iterdir()) == checkpoint.step_folders(tmp_path)
    for folder in checkpoint.step_folders(tmp_path):
        checkpoint.load(folder)


def test_pruning_takes_no_place_of_the_newest_for_the_best(tmp_path: Path) -> None:
    save_losses(tmp_path, {1: 4.0, 2: 3.0, 3: 2.0})
    checkpoint.prune(tmp_path, 2)
    assert steps(tmp_path) == [2, 3]


def test_pruning_without_losses_keeps_the_newest(tmp_path: Path) -> None:
    save_losses(tmp_path, {1: None, 2: None, 3: None})
    checkpoint.prune(tmp_path, 1)
    assert steps(tmp_path) == [3]


def test_pruning_minds_no_leftover_of_a_killed_one(tmp_path: Path) -> None:
    save_losses(tmp_path, {1: None, 2: None})
    leftover = tmp_path / ".step-00000001.old"
    leftover.mkdir()
    (leftover / "model.safetensors").touch()
    checkpoint.prune(tmp_path, 1)
    assert steps(tmp_path) == [2]
