"""A sample for each of many requests, several at a time. Imports no torch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from gptkit.codec import Codec
from gptkit.sampling.generate import Decoder, generate_each
from gptkit.sampling.rule import SamplingOptions
from gptkit.sampling.samples import SampleRequest, Samples
from gptkit.sampling.stops import Sample

ROWS = 16
"""Most samples that are drawn together."""


def sample_each(
    decoder_for: Callable[[int], AbstractContextManager[Decoder]],
    codec: Codec,
    requests: Sequence[SampleRequest],
    sampling: SamplingOptions,
    seeds: Sequence[int],
) -> Samples:
    """Start to draw a sample for every request; each is what `sample` draws for it alone.

    Requests of similar length are drawn together, `ROWS` at a time.

    Args:
        decoder_for: lends a decoder for that many rows.
        codec: reads the prompts.
        requests: each for one sample.
        sampling: options of the rule, except the seed.
        seeds: one for every request.

    Raises:
        PromptError: the codec cannot read a prompt, or a prompt already fills its sample.
    """
    starts = [start for request in requests for start in request.starts(codec)]
    counts = [r.count(start, codec.length) for r, start in zip(requests, starts, strict=True)]
    samples = [
        Sample(start, request.stops(codec.stop_tokens, codec), count=count)
        for request, start, count in zip(requests, starts, counts, strict=True)
    ]
    order = sorted(range(len(samples)), key=lambda i: (len(starts[i]), counts[i]))

    def steps() -> Iterator[None]:
        for first in range(0, len(order), ROWS):
            batch = order[first : first + ROWS]
            with decoder_for(len(batch)) as decoder:
                for tokens in generate_each(
                    decoder,
                    [starts[i] for i in batch],
                    tokens=[counts[i] for i in batch],
                    sampling=sampling,
                    seeds=[seeds[i] for i in batch],
                ):
                    for i, token in zip(batch, tokens, strict=True):
                        if token is not None:
                            samples[i].add(token)
                    yield
                    if all(samples[i].ended for i in batch):
                        break

    return Samples("", samples, steps())
