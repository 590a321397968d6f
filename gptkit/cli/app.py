"""The command line: a command parses, calls one function and prints. Heavy imports are inside."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from gptkit.cli import completion, plugins, process, runs
from gptkit.cli.commands import Commands
from gptkit.cli.options import (
    CheckpointOption,
    DeviceOption,
    JsonOption,
    RecipeArgument,
    RunArgument,
    SetOption,
    WeightsOption,
)
from gptkit.cli.sample import sample
from gptkit.errors import UsageError
from gptkit.terminal import lasting, print_result, say
from gptkit.training import torchrun

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, sample and ship small and medium GPTs from one recipe file.",
)
app.add_typer(plugins.app, name="plugins")
app.add_typer(runs.app, name="runs")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Train, sample and ship small and medium GPTs from one recipe file."""
    if version:
        from gptkit import __version__

        print_result(__version__)
        raise typer.Exit


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: SetOption = [],  # noqa: B006
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The run folder; by default a new one in runs/."),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Begin with the weights of this run.",
            autocompletion=completion.run_folders,
        ),
    ] = None,
    checkpoint: CheckpointOption = "last",
    weights: WeightsOption = None,
) -> None:
    """Train a recipe from the start into a new run folder; prints the folder."""
    from gptkit.runs import train

    if start is None and (checkpoint != "last" or weights):
        raise UsageError("--checkpoint and --weights are of another run", hint="add --from RUN")
    run = train.train(
        recipe,
        overrides,
        out=out,
        start=start,
        which=checkpoint,
        weights=weights,
        report=say,
    )
    _print_folder(run.path)


@app.command()
def resume(run_folder: RunArgument = None, overrides: SetOption = []) -> None:  # noqa: B006
    """Continue a run from its newest checkpoint, exactly; prints the folder.

    --set changes fields from here on, such as train.steps, and rewrites the run's recipe.
    """
    from gptkit.runs import train

    _print_folder(train.resume(run_folder, overrides, report=say).path)


@app.command("import")
def import_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A folder or file of another program, or a name on the Hub."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The run folder; by default a new one in runs/."),
    ] = None,
    format_name: Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help="The format, if it is not recognised."),
    ] = None,
    overrides: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="OPTION=VALUE", help="Set an option of the format; repeatable."
        ),
    ] = [],  # noqa: B006
) -> None:
    """Make a run of a model of another program, proven equal to it; prints the folder."""
    if torchrun.rank() != 0:
        return  # one process is enough

    from gptkit.recipe import formats
    from gptkit.runs.importing import import_model

    format_ = formats.make(format_name or formats.find_reader(source), {}, overrides)
    _print_folder(import_model(source, format_, out=out, report=say).path)


app.command()(sample)


@app.command("eval")
def evaluate(
    run_folder: RunArgument = None,
    checkpoint: CheckpointOption = "last",
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    classify: Annotated[
        bool, typer.Option("--classify", help="Also classify by the highest p(x | class).")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Measure the loss over the whole validation split."""
    from gptkit.analysis.evaluation import evaluate_run
    from gptkit.show.results import print_evaluation

    found = evaluate_run(
        run_folder, checkpoint=checkpoint, weights=weights, device=device, by_class=classify
    )
    print_evaluation(found, as_json=json)


@app.command("probe")
def probe_command(
    run_folder: RunArgument = None,
    items: Annotated[
        int, typer.Option(metavar="N", min=1, help="Use at most this many items of each split.")
    ] = 10_000,
    checkpoint: CheckpointOption = "last",
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Measure how well a linear classifier predicts the class from each layer's features."""
    from gptkit.analysis import probes
    from gptkit.runs.run_folder import open_run
    from gptkit.show.results import print_probe

    path = open_run(run_folder).path
    found = probes.probe_run(path, checkpoint=checkpoint, device=device, items=items)
    print_probe(found, probes.save_probe(found, path), as_json=json)


@app.command()
def export(
    run_folder: RunArgument = None,
    to: Annotated[
        str, typer.Option("--to", metavar="NAME", help="The format: onnx, or one of a plugin.")
    ] = "onnx",
    to_onnx: Annotated[bool, typer.Option("--onnx", hidden=True)] = True,  # as in 0.1's scripts
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="FILE.onnx, or a folder for a bundle; by default model.onnx."
        ),
    ] = None,
    web: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a page that runs it in a browser.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="float32, float16, int8 or int4; by default float32."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE",
            help="The device that a bundle is made for: cpu or cuda; by default cpu.",
        ),
    ] = None,
    overrides: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="OPTION=VALUE", help="Set an option of the format; repeatable."
        ),
    ] = [],  # noqa: B006
    checkpoint: CheckpointOption = "last",
    weights: WeightsOption = None,
) -> None:
    """Write a model for other programs, proven equal to its checkpoint; prints the path."""
    if torchrun.rank() != 0:
        return  # one process is enough

    from gptkit.recipe import formats
    from gptkit.runs import export as exporting
    from gptkit.show import exports

    shorthands = {"dtype": dtype, "device": device, "web": web}
    options = {name: value for name, value in shorthands.items() if value is not None}
    made = formats.make(to, options, overrides)
    with exports.working():
        path = exporting.export(run_folder, made, out=out, checkpoint=checkpoint, weights=weights)
    exports.print_proof(made)
    print_result(path)


@app.command()
def check(recipe: RecipeArgument, overrides: SetOption = []) -> None:  # noqa: B006
    """Validate a recipe and its plugins without training; prints the complete recipe."""
    from gptkit.recipe import build, formats
    from gptkit.runs import fits

    plugins = build.build(build.read(recipe, overrides, report=say))
    if plugins.recipe.model.init is not None:
        from gptkit.runs import origin  # takes a second

        plugins, _ = origin.completed(plugins)
    print_result(plugins.recipe.to_toml(), end="")
    warnings = [*plugins.missing_paths(), fits.warning(plugins)]
    for warning in filter(None, warnings):
        say(f"warning: {recipe}: {warning}")
    for line in formats.where_it_opens(fits.config_of(plugins).model_dump(mode="json")):
        say(f"{recipe}: {line}")
    say(f"{recipe}: ok")


@app.command()
def plan(recipe: RecipeArgument, overrides: SetOption = [], json: JsonOption = False) -> None:  # noqa: B006
    """Show what a training will take: parameters, FLOPs, memory, time; tries three steps."""
    if torchrun.rank() != 0:
        return  # one process is enough

    from gptkit.analysis.plan import make_plan
    from gptkit.recipe import build
    from gptkit.runs import origin
    from gptkit.show.plan import print_plan

    plugins, _ = origin.completed(build.build(build.read(recipe, overrides, report=say)))
    print_plan(make_plan(plugins), as_json=json)


@app.command()
def convert(
    config: Annotated[Path, typer.Argument(metavar="FILE", help="A nanoGPT config, a .py file.")],
) -> None:
    """Print the recipe of a nanoGPT config, which is parsed and never executed."""
    from gptkit.recipe import nanogpt

    converted = nanogpt.convert(config)
    print_result(converted.recipe, end="")
    for note in converted.notes:
        say(f"{config}: {note}")


@app.command()
def doctor(json: JsonOption = False) -> None:
    """Show versions and devices, and run a model on each onnxruntime provider."""
    from gptkit.onnx import doctor
    from gptkit.show import doctor as show

    show.print_findings(doctor.examine(), as_json=json)


@lasting()
def _print_folder(path: Path) -> None:
    if torchrun.rank() == 0:
        print_result(path)
        sys.stdout.flush()


def main() -> None:
    """Run the command line in this process, and end it."""
    process.run(app)
