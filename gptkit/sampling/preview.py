"""The samples that callbacks draw during training."""

import torch

from gptkit.codec import Codec
from gptkit.model.gpt import GPT, evaluating
from gptkit.sampling.rule import SamplingOptions
from gptkit.sampling.samples import SampleRequest, sample
from gptkit.sampling.torch_decoder import TorchDecoder
from gptkit.train_state import Sampler

IMAGES = 16
"""Images in a preview."""


def previewer(model: GPT, codec: Codec) -> Sampler:
    """The function `state.sample` of callbacks: draws some text, or a sheet of whole images."""

    def preview(tokens: int, seed: int, prompt: str = "") -> bytes:
        options = SamplingOptions(temperature=codec.temperature, seed=seed)
        has_length = codec.length is not None
        request = SampleRequest(
            prompt, tokens=None if has_length else tokens, samples=IMAGES if has_length else 1
        )
        decoder = TorchDecoder(model, request.samples)
        # Every call has a different length, so compiling would not pay.
        with evaluating(model), torch.compiler.set_stance("force_eager"):
            return sample(decoder, codec, request, options).contents(codec)

    return preview
