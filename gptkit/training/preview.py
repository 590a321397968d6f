"""The samples that callbacks draw during training."""

import torch

from gptkit.codec import Codec, ImageCodec, TextCodec
from gptkit.contract.train_state import Sampler
from gptkit.model.gpt import GPT, evaluating
from gptkit.sampling.rule import SamplingOptions
from gptkit.sampling.samples import SampleRequest, sample
from gptkit.sampling.torch_decoder import TorchDecoder

MOST = 16
"""Most samples in a preview."""


def previewer(model: GPT, codec: Codec) -> Sampler:
    """The function `state.sample` of callbacks: draws a text, a sheet of images, or another file.

    What has a fixed length is drawn completely. Without a prompt there are as many of short texts
    as have `tokens` tokens together, at most `MOST`.
    """

    def preview(tokens: int, seed: int, prompt: str = "") -> bytes:
        options = SamplingOptions(temperature=codec.temperature, seed=seed)
        request = SampleRequest(
            prompt,
            tokens=tokens if codec.length is None else None,
            samples=_count(codec, tokens, prompt),
        )
        decoder = TorchDecoder(model, request.samples)
        # Every call has a different length, so compiling would not pay.
        with evaluating(model), torch.compiler.set_stance("force_eager"):
            return sample(decoder, codec, request, options).contents(codec)[0]

    return preview


def _count(codec: Codec, tokens: int, prompt: str) -> int:
    """How many samples a preview shows."""
    match codec:
        case ImageCodec():
            return MOST
        case TextCodec() if codec.length is not None and not prompt:
            return max(1, min(MOST, tokens // codec.length))
        case _:
            return 1
