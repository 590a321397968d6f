"""`gptkit runs`: list, show and compare runs."""

from pathlib import Path
from typing import Annotated

import typer

from gptkit.cli import completion
from gptkit.cli.options import JsonOption, RunArgument

app = typer.Typer(no_args_is_help=True, help="List, show and compare runs.")


@app.command("list")
def list_(json: JsonOption = False) -> None:
    """List the runs under runs/, the one trained last at the end."""
    from gptkit.runs.run_folder import list_runs
    from gptkit.show import runs as show

    show.print_runs(list_runs(), as_json=json)


@app.command("show")
def show_(run_folder: RunArgument = None, json: JsonOption = False) -> None:
    """Show a run: recipe, environment, checkpoints."""
    from gptkit.runs.run_folder import open_run
    from gptkit.show import runs as show

    show.print_run(open_run(run_folder), as_json=json)


@app.command()
def compare(
    run_folders: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run folders.", autocompletion=completion.run_folders),
    ],
    json: JsonOption = False,
) -> None:
    """Compare runs: their losses, and the recipe fields in which they differ."""
    from gptkit.show import runs as show

    show.print_comparison(run_folders, as_json=json)
