"""The command `gptkit sample`."""

from pathlib import Path
from typing import Annotated

import typer

from gptkit.cli.options import CheckpointOption, DeviceOption, ModelArgument, WeightsOption

PromptOption = Annotated[
    str,
    typer.Option(
        metavar="TEXT", help="What to continue: text, or an image file; - reads standard input."
    ),
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Draw a sample for each line, or row of a .jsonl file."),
]
TokensOption = Annotated[
    int | None,
    typer.Option(
        "--tokens",
        "--max-new-tokens",
        metavar="N",
        min=1,
        help="Tokens to draw; by default 500, or the rest of an image.",
    ),
]
StopOption = Annotated[
    list[str],
    typer.Option(metavar="TEXT", help="End a sample before this text; repeatable."),
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        metavar="T", help="0 takes the likeliest token; by default 0.8 for text, 1 for pixels."
    ),
]
TopPOption = Annotated[
    float,
    typer.Option(metavar="P", help="Keep the likeliest tokens up to this sum of probabilities."),
]


def sample(
    run_folder: ModelArgument = None,
    prompt: PromptOption = "",
    prompts: PromptsOption = None,
    keep: Annotated[
        float, typer.Option(metavar="SHARE", help="Fraction of the prompt to keep, 0 to 1.")
    ] = 1.0,
    label: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="The class to draw from.")
    ] = None,
    tokens: TokensOption = None,
    stop: StopOption = [],  # noqa: B006
    ignore_stop: Annotated[
        bool, typer.Option("--ignore-stop", help="Do not end at the data's own stop tokens.")
    ] = False,
    temperature: TemperatureOption = None,
    top_k: Annotated[
        int, typer.Option(metavar="K", help="Keep the k likeliest tokens; 0: all.")
    ] = 0,
    top_p: TopPOption = 1.0,
    seed: Annotated[
        int, typer.Option(metavar="N", help="The same seed draws the same sample.")
    ] = 0,
    samples: Annotated[
        int, typer.Option("--samples", "-n", metavar="N", min=1, help="Samples to draw together.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write to this file instead.")
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Print token ids instead.")] = False,
    checkpoint: CheckpointOption = "last",
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    engine: Annotated[
        str,
        typer.Option(
            metavar="ENGINE", help="What draws from a run: auto, torch or onnx (onnxruntime)."
        ),
    ] = "auto",
) -> None:
    """Draw from a trained model: text is shown while it is drawn, images go to --out.

    RUN may also be an exported model.onnx or bundle, which runs without torch.
    """
    from gptkit.cli import drawing
    from gptkit.loading import open_model
    from gptkit.sampling.rule import SamplingOptions
    from gptkit.sampling.samples import SampleRequest

    if prompts:
        drawing.check_prompts(prompts, out, lone=bool(prompt) or samples > 1)
    model, chosen = open_model(
        run_folder, checkpoint=checkpoint, weights=weights, device=device, engine=engine
    )
    request = SampleRequest(
        drawing.standard_input(model) if prompt == "-" else prompt,
        tokens=tokens,
        samples=samples,
        keep=keep,
        label=label,
        stop=tuple(stop),
        ignore_stop=ignore_stop,
    )
    temperature = model.temperature if temperature is None else temperature
    sampling = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    codec = None if ids else model.codec
    if not out:
        drawing.show(model.draw(request, sampling, streaming=True), codec, engine=chosen)
    elif prompts:
        drawing.write_each(model, prompts, request, sampling, codec, out, engine=chosen)
    else:
        drawing.write(model, request, sampling, codec, out, engine=chosen)
