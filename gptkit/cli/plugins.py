"""`gptkit plugins`: list, show, check and create plugins."""

from pathlib import Path
from typing import Annotated

import typer

from gptkit.cli import completion
from gptkit.cli.options import JsonOption
from gptkit.errors import PluginError
from gptkit.terminal import print_result, say

app = typer.Typer(no_args_is_help=True, help="List, show, check and create plugins.")


@app.command("list")
def list_(json: JsonOption = False) -> None:
    """List the installed plugins; imports none of them."""
    from gptkit.recipe import registry
    from gptkit.show import plugins as show

    show.print_entries(registry.all_installed(), as_json=json)


@app.command("show")
def show_(
    name: Annotated[
        str,
        typer.Argument(
            help="A plugin's name, or what plugins import, e.g. TrainState or check_codec.",
            autocompletion=completion.plugins,
        ),
    ],
) -> None:
    """Show a plugin's options, their defaults and their meaning, or a class of the contract."""
    from gptkit.recipe import registry
    from gptkit.show import plugins as show

    try:
        found = registry.find_any(name)
    except PluginError as error:
        from gptkit.show import contract

        if name not in contract.names():
            raise contract.with_nearest(error, name) from None
        contract.print_part(name)
        return
    for entry in found:
        if entry.kind == "command":
            show.print_command(entry)
        else:
            show.print_plugin(entry, registry.load(entry))


@app.command()
def check(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help="Plugins' names; by default all.",
            autocompletion=completion.plugins,
        ),
    ] = [],  # noqa: B006
) -> None:
    """Import plugins; print which are broken, and where an import fails its traceback."""
    from gptkit.recipe import plugin_check
    from gptkit.show import plugins as show

    results = plugin_check.check_all(names)
    misplaced = [] if names else plugin_check.misplaced()
    show.print_checks(results, misplaced)
    if misplaced or any(error for _, error in results):
        raise typer.Exit(2)


@app.command()
def new(
    name: Annotated[
        str, typer.Argument(help="Its name in recipes: lower-case letters, digits, -.")
    ],
    kind: Annotated[str, typer.Option(help="callback or dataset.")] = "callback",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder; by default ./NAME.")
    ] = None,
) -> None:
    """Write the package of a new plugin, which installs and passes its test; prints the folder."""
    from gptkit.scaffold import package

    written = package.write(name, kind, out)
    say(f"in that folder: pip install --editable . && gptkit plugins check {name}")
    print_result(written)
