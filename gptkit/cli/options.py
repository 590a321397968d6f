"""The arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML recipe.")]
RunArgument = Annotated[
    Path | None, typer.Argument(metavar="[RUN]", help="A run folder; by default the newest.")
]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe field; repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
CheckpointOption = Annotated[
    str, typer.Option("--checkpoint", metavar="last|best|STEP", help="Which checkpoint to take.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")]
