"""`gptkit chat`: talk to a model. Heavy imports are inside, so that --help is fast."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def chat(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN|MODEL.onnx]", help="A run folder or an exported model; the newest run."
        ),
    ] = None,
    system: Annotated[
        str, typer.Option(metavar="TEXT", help="What the model is told before the chat.")
    ] = "",
    tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Tokens of an answer, at most.")
    ] = 512,
    temperature: Annotated[
        float | None,
        typer.Option(metavar="T", help="0 takes the likeliest token; by default 0.8."),
    ] = None,
    top_k: Annotated[
        int, typer.Option(metavar="K", help="Keep the k likeliest tokens; 0: all.")
    ] = 0,
    top_p: Annotated[
        float,
        typer.Option(metavar="P", help="Keep the likeliest tokens up to this sum."),
    ] = 1.0,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Of the first answer; the next one has N + 1.")
    ] = 0,
    checkpoint: Annotated[
        str, typer.Option(metavar="STEP", help="last, best or a step's number.")
    ] = "last",
    weights: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another set of weights, such as ema.")
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.")
    ] = "auto",
) -> None:
    """Talk to a model: a message in each line, answers are shown while they are drawn.

    In a pipe each line is a message, and answers alone are on stdout.
    """
    import gptkit
    from gptkit.plugin import harmless
    from gptkit_chat.dialogue import Dialogue
    from gptkit_chat.session import Session, Settings
    from gptkit_chat.terminal import Terminal

    loaded = gptkit.load(model, checkpoint=checkpoint, weights=weights, device=device)
    settings = Settings(tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    Dialogue(Session(loaded, settings, system), Terminal(harmless)).run()
