"""The samples that callbacks draw during training."""

from contextlib import suppress

import numpy as np
import torch

from gptkit.codec import Codec, ImageCodec, TextCodec
from gptkit.contract.train_state import Sampler
from gptkit.errors import ModelFileError
from gptkit.model.gpt import GPT, evaluating, is_sharded
from gptkit.recipe import sizes
from gptkit.sampling.generate import Decoder
from gptkit.sampling.rule import SamplingOptions
from gptkit.sampling.samples import DEFAULT_TEXT_TOKENS, SampleRequest, sample
from gptkit.sampling.torch_decoder import TorchDecoder
from gptkit.training.merging import merged

MOST = 16
"""Most samples in a preview."""
ENOUGH = 64
"""Tokens of a sample from which on onnxruntime makes up for the session that it needs first."""


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
        count = request.tokens or codec.length or DEFAULT_TEXT_TOKENS
        decoder = _fastest(model, request.samples, count)
        # Every call has a different length, so compiling would not pay.
        with evaluating(model), torch.compiler.set_stance("force_eager"):
            return sample(decoder, codec, request, options).contents(codec)[0]

    return preview


def _fastest(model: GPT, samples: int, count: int) -> Decoder:
    """What draws so many tokens of so many samples soonest: onnxruntime, on a CPU."""
    like = model.wte.weight
    plain = like.device.type == "cpu" and like.dtype == torch.float32 and not is_sharded(like)
    if plain and count >= ENOUGH:
        from gptkit.onnx.runtime.decoder import OnnxDecoder, WeightsSession

        if sizes.not_fused(model.config) is None:
            weights = merged(model, model.weights())
            arrays = {name: tensor.detach().numpy() for name, tensor in weights.items()}
            with suppress(ModelFileError):
                decoder = OnnxDecoder(WeightsSession(model.config, arrays, "the model"), samples)
                decoder.prefill(np.zeros((samples, 1), np.int64))  # faults may show only then
                return decoder
    return TorchDecoder(model, samples)


def _count(codec: Codec, tokens: int, prompt: str) -> int:
    """How many samples a preview shows."""
    match codec:
        case ImageCodec():
            return MOST
        case TextCodec() if codec.length is not None and not prompt:
            return max(1, min(MOST, tokens // codec.length))
        case _:
            return 1
