"""Write a step folder: by one process, or by all ranks of a sharded model together.

Memory is needed for one tensor at a time. The folder appears when it is complete and on the disk.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor

from gptkit.errors import CheckpointError
from gptkit.files import digest
from gptkit.recipe import adapters
from gptkit.runs import tensor_writer
from gptkit.runs.checkpoint import CODEC, STATE, STATE_DIGEST, step_name, sweep
from gptkit.runs.state import State
from gptkit.staging import staged
from gptkit.training.distributed import ALONE, Ranks

Files = Mapping[str, Mapping[str, Tensor]]
"""Tensors by file name without ending, "model" and so on."""
LONG = 1 << 14
"""Characters of a codec's options from which on they have a file of their own."""


def save(
    folder: Path, state: State, files: Files, ranks: Ranks = ALONE, *, shapes: Files | None = None
) -> Path:
    """Write a step folder below `folder`.

    Args:
        folder: the run's `checkpoints/`.
        state: its `sha256` is filled in here; only the first rank's counts.
        files: an empty one is left out. Sharded tensors are written by all ranks, others by the
            first one, which determines what there is.
        ranks: those that hold parts of the tensors; all of them call this.
        shapes: the same files with tensors on meta, where those of `files` are made when they are
            asked for: each then is once.

    Raises:
        CheckpointError: the disk is full or not writable; nothing half-written remains.
    """
    target = folder / step_name(state.step)
    with _explained(target), ExitStack() as stack:
        new = target
        with _agreeing(ranks):
            if ranks.first:
                folder.mkdir(exist_ok=True)  # without the run folder: it may have been moved
                sweep(folder)
                new = stack.enter_context(staged(target))
                new.mkdir()
        new = Path(ranks.broadcast(str(new)))
        _write(new, _named(files), ranks, shapes=_named(shapes or files))
        if ranks.first:
            _seal(new, state, _named(files))
    return target


def save_one(path: Path, tensors: Mapping[str, Tensor], ranks: Ranks = ALONE) -> None:
    """Write a file of tensors, whole or not at all; arguments as for `save`.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    with _explained(path), ExitStack() as stack:
        new = path
        with _agreeing(ranks):
            if ranks.first:
                new = stack.enter_context(staged(path))
        new = Path(ranks.broadcast(str(new)))
        _write(new.parent, {path.name: tensors}, ranks, shapes={path.name: tensors})


def _write(folder: Path, files: Files, ranks: Ranks, *, shapes: Files) -> None:
    """Write files of tensors into a folder."""
    size = written = 0
    with _agreeing(ranks):
        if ranks.first:
            size = sum(tensor_writer.create(folder / n, t) for n, t in shapes.items())
    with _agreeing(ranks):
        for name, tensors in files.items():
            written += tensor_writer.fill(folder / name, tensors, first=ranks.first)
    missing = size - int(ranks.all_reduce_sum(written))
    if ranks.first and missing:
        raise OSError(f"{missing:,} bytes are missing: processes hold other tensors")


def _named(files: Files) -> Files:
    """The files that are not empty, by their names."""
    return {f"{name}.safetensors": tensors for name, tensors in files.items() if tensors}


def _seal(folder: Path, state: State, names: Iterable[str]) -> None:
    """Write `state.json`, with the digests of the other files, and its own digest.

    Before, what of these is no tensor: a long codec, and what PEFT needs to read adapters.
    """
    codec, names = state.codec, list(names)
    options = json.dumps(codec.options, ensure_ascii=False)
    if len(options) > LONG:
        (folder / CODEC).write_text(options + "\n", encoding="utf-8")
        codec, names = codec.model_copy(update={"options": {}}), [*names, CODEC]
    if state.lora:
        about = adapters.peft_config(state.config, state.lora)
        (folder / adapters.CONFIG_FILE).write_text(json.dumps(about, indent=2) + "\n")
        names = [*names, adapters.CONFIG_FILE]
    digests = {name: digest(folder / name) for name in names}
    state = state.model_copy(update={"codec": codec, "sha256": digests})
    (folder / STATE).write_text(state.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / STATE_DIGEST).write_text(digest(folder / STATE) + "\n")


@contextmanager
def _agreeing(ranks: Ranks) -> Iterator[None]:
    """A block whose exception on one rank is raised on all of them: there as an OSError."""
    fault: Exception | None = None
    try:
        yield
    except Exception as error:
        fault = error
    failed = int(ranks.all_reduce_max(ranks.rank + 1 if fault else 0))
    if not failed:
        return
    text = ranks.broadcast(str(fault) or type(fault).__name__, source=failed - 1)
    raise fault or OSError(text)


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{target}: cannot be saved: {error}",
            hint="free some space, then gptkit resume continues the run",
        ) from error
