"""The arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from gptkit.cli import completion

RecipeArgument = Annotated[
    Path,
    typer.Argument(metavar="RECIPE", help="A TOML recipe.", autocompletion=completion.recipes),
]
RunArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN",
        help="A run folder; by default the newest, which is the one trained last.",
        autocompletion=completion.run_folders,
    ),
]
ModelArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN",
        help="A run folder; by default the newest. Or a model.onnx or a bundle.",
        autocompletion=completion.models,
    ),
]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe field; repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
CheckpointOption = Annotated[
    str, typer.Option("--checkpoint", metavar="last|best|STEP", help="Which checkpoint to take.")
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights", metavar="NAME", help="Take a further set of weights, such as an average."
    ),
]
DeviceOption = Annotated[
    str, typer.Option(metavar="DEVICE", help="auto, cpu, mps, cuda or cuda:N.")
]
