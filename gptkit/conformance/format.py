"""The contract of formats as assertions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptkit.conformance.drive import LetterCodec
from gptkit.conformance.options import check_options
from gptkit.errors import UsageError
from gptkit.model.gpt import GPT
from gptkit.plugin import Data, Format, Split, TrainedModel
from gptkit.recipe.options import GPTConfig

BLOCK, LETTERS = 8, 26


class Alphabet(Split):
    """Windows of the alphabet, again and again."""

    def __len__(self) -> int:
        return LETTERS

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        window = (indices[:, None] + torch.arange(BLOCK + 1)) % LETTERS
        return window[:, :-1].contiguous(), window[:, 1:].contiguous()


def make_model(
    config: Mapping[str, Any] | None = None, weights: Mapping[str, Tensor] | None = None
) -> TrainedModel:
    """A small model, for tests of formats; its codec and data are of the letters a to z.

    Args:
        config: its sizes and options, as in `TrainedModel`; None takes 26 tokens and width 16.
        weights: by their names in a checkpoint; None takes random ones.
    """
    default = {"vocab_size": LETTERS, "block_size": BLOCK, "n_layer": 2, "n_head": 2, "n_embd": 16}
    shape = GPTConfig.model_validate(dict(config or default))
    model = GPT(shape).eval()
    if weights is not None:
        model.load_weights(weights)
    split, codec = Alphabet(), LetterCodec()
    return TrainedModel(
        module=model,
        config=shape.model_dump(mode="json"),
        weights={name: tensor.detach() for name, tensor in model.weights().items()},
        codec=codec,
        dataset="alphabet",
        step=10,
        val_loss=3.25,
        weights_sha256="0" * 64,
        load_data=lambda: Data(split, split, codec, vocab_size=LETTERS, block_size=BLOCK),
    )


def check_format(format_: Format, folder: Path) -> Path:
    """Assert the contract of formats; return what it wrote, to be read and compared.

    Args:
        format_: with the options to test.
        folder: an empty folder to write to.
    """
    check_options(format_)
    kind, model = type(format_).__name__, make_model()
    before = {name: tensor.clone() for name, tensor in model.weights.items()}
    path = folder / format_.default_path().name
    format_.check(path)
    others = set(folder.iterdir())
    format_.write(model, path)
    assert path.exists(), f"{kind}.write must write the path that it is given, {path.name}"
    more = ", ".join(sorted(each.name for each in {*folder.iterdir()} - others - {path}))
    assert not more, f"{kind}.write must write nothing beside its path, but wrote {more}"
    for name, tensor in model.weights.items():
        assert torch.equal(tensor, before[name]), f"{kind}.write must not change the model: {name}"
    try:
        format_.check(path)
    except UsageError as error:
        raise AssertionError(f"{kind}.check must let it replace what it wrote: {error}") from error
    return path
