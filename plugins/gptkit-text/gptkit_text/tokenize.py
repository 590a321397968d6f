"""`gptkit tokenize`: what a recipe's text is in tokens, before anything is trained."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def tokenize(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML recipe.")],
    overrides: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe field; repeatable."),
    ] = [],  # noqa: B006
    json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Show the tokens of a recipe's text: how many, which ones, and what may spoil a training.

    The text is encoded for it, unless it is in the cache, where training finds it then.
    """
    import gptkit  # inside, so that --help is fast
    from gptkit.plugin import UsageError
    from gptkit_text import report
    from gptkit_text.dataset import Text
    from gptkit_text.survey import survey

    dataset = gptkit.dataset(recipe, overrides)
    if not isinstance(dataset, Text):
        raise UsageError(
            f"{recipe}: its data set is {type(dataset).__name__}, whose tokens are not those of a "
            "tokenizer",
            hint='gptkit tokenize is for recipes with [dataset] use = "text"',
        )
    found = survey(dataset)
    report.print_json(found) if json else report.print_survey(found)
    report.print_concerns(found)
