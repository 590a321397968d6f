"""A run folder that the processes of a job share: the first one makes, locks and checks it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gptkit.errors import CheckpointError, FormatError, RunError
from gptkit.files import quote
from gptkit.recipe.table import Report
from gptkit.runs import checkpoint, new_folder, run_folder
from gptkit.runs.run_folder import RunFolder
from gptkit.runs.setup import read_snapshot
from gptkit.staging import remove_temporaries
from gptkit.training.distributed import Ranks
from gptkit.training.snapshot import Snapshot


def previous_run(ranks: Ranks, out: Path | None) -> RunFolder | None:
    """The run that this call of torchrun started before it restarted its processes."""
    if not ranks.restarted:
        return None
    found = ""
    if ranks.first:
        runs = [RunFolder(out)] if out else reversed(run_folder.list_runs())
        of_job = (str(run.path) for run in runs if run.read_environment().get("job") == ranks.job)
        found = next(of_job, "")
    previous = ranks.broadcast(found)
    return RunFolder(Path(previous)) if previous else None


@contextmanager
def claim(out: Path | None, name: str, ranks: Ranks) -> Iterator[RunFolder]:
    """A new run folder, which the first rank makes and locks."""
    if ranks.first:
        with new_folder.claim(out, name) as run:
            ranks.broadcast(str(run.path))
            yield run
    else:
        yield RunFolder(Path(ranks.broadcast()))


def newest_snapshot(run: RunFolder, ranks: Ranks, report: Report) -> Snapshot | None:
    """The newest checkpoint of the training that the first rank finds intact; all ranks read it."""
    found = None
    if ranks.first:
        remove_temporaries(run.path)
        if checkpoint.step_folders(run.checkpoints):
            found = _newest_intact(run, report)
    step = int(ranks.all_reduce_max(found.step if found else -1))
    if ranks.first or step < 0:
        return found
    return read_snapshot(run.step_folder(step))


def _newest_intact(run: RunFolder, report: Report) -> Snapshot | None:
    for step_folder in reversed(checkpoint.step_folders(run.checkpoints)):
        try:
            if checkpoint.load_state(step_folder).imported:
                return None
            return read_snapshot(step_folder)
        except FormatError:
            raise  # a newer gptkit can read it; an older checkpoint would lose steps
        except CheckpointError as error:
            report(f"skipping {error}")
    raise RunError(
        f"{run.path}: no checkpoint is intact",
        hint=f"train it from the start: gptkit train {quote(run.recipe)}",
    )


def on_rank_0(report: Report, ranks: Ranks) -> Report:
    """`report` on the first rank; the others show nothing."""
    return report if ranks.first else lambda line: None
