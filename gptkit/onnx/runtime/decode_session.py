"""A bundle in onnxruntime: `model.onnx` reads the prompt, `decode.onnx` draws token by token.

Imports no torch. The cache, the tokens and everything else that one step passes to the next stay in
buffers on the device. Two bindings alternate: each reads what the other one wrote. On CUDA each is
recorded as a CUDA graph, so that a step is a single launch.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from gptkit.errors import ModelFileError
from gptkit.onnx.runtime import metadata
from gptkit.onnx.runtime.interface import (
    DTYPES,
    FLOAT,
    FLOAT16,
    INT32,
    INT64,
    check_drawn,
    check_ports,
    check_shape,
)
from gptkit.onnx.runtime.providers import AGAIN, CUDA, open_session, provider, running
from gptkit.sampling.generate import restart_length
from gptkit.sampling.rule import Ints, SamplingOptions, uniforms
from gptkit.sampling.stops import Stops

STEP_FILE, DECODE_FILE = "model.onnx", "decode.onnx"
NEXT_INPUTS = {
    "input_ids": "next_ids",
    "length": "next_length",
    "draw": "next_draw",
    "tokens_in": "tokens",
}
"""Inputs of a step, and the outputs of the step before it that they are taken from."""
INPUTS = {
    "input_ids": (INT64, 2),
    "length": (INT32, 1),
    "draw": (INT64, 1),
    "tokens_in": (INT64, 2),
    "uniforms": (FLOAT, 2),
    "temperature": (FLOAT, 1),
    "top_k": (INT64, 1),
    "top_p": (FLOAT, 1),
}
"""Of `decode`, but for the cache."""
STEP_INPUTS = dict.fromkeys(("input_ids", "attention_mask", "position_ids"), (INT64, 2))
"""Of `step`, but for the cache."""
MAX_TABLE = 1024
"""Draws for which random numbers and tokens are kept on the device at a time."""
FETCHED = 16
"""Tokens drawn before the host looks whether all rows have come to a stop, and counts them."""

Arrays = dict[str, NDArray[Any]]
Buffers = dict[str, ort.OrtValue]


class DecodeSession:
    """Draws tokens with a bundle's graphs `step` and `decode`.

    Args:
        folder: of the bundle.
        device: "cpu", "cuda", "cuda:N" or "auto".

    Raises:
        ModelFileError: a file has no metadata of gptkit's, or holds another graph.
        UsageError: the device is not available.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.step_path, self.path = folder / STEP_FILE, folder / DECODE_FILE
        self.step_session = open_session(self.step_path, device)
        self.session = open_session(self.path, device, enable_cuda_graph="1")
        self.metadata = self._check_graphs(folder)
        caches = [x for x in self.session.get_inputs() if x.name.startswith("past_key_values.")]
        self.cache_names = [cache.name for cache in caches]
        """The inputs that hold keys or values of a layer."""
        self.cache_type = self._check_ports()
        self.cache_shape = self._shape_of([cache.shape[1:] for cache in caches])
        """Of the keys or values of a layer and a row: (n_kv_head, block_size, head_size)."""
        self.recorded = 0
        """Number of CUDA graphs so far."""
        self._idle: dict[int, _Steps] = {}
        """Those that draw nothing now, by batch size: a CUDA graph is recorded once."""

    def first_chunk(self, *, streaming: bool, stops: Stops) -> int:
        """Tokens to draw before they are fetched, to be shown, searched or counted."""
        return 1 if streaming else FETCHED

    @property
    def on_cuda(self) -> bool:
        """Whether the buffers are on a GPU."""
        return provider(self.session) == CUDA

    @property
    def block_size(self) -> int:
        """Tokens that fit into the cache."""
        return self.cache_shape[1]

    def empty_cache(self, batch_size: int, length: int) -> NDArray[Any]:
        """Zeros in the shape of keys or values of one layer."""
        n_kv_head, _, head_size = self.cache_shape
        return np.zeros((batch_size, n_kv_head, length, head_size), DTYPES[self.cache_type])

    def stream(
        self,
        prompts: Ints,
        count: int,
        sampling: SamplingOptions,
        *,
        chunk: int = 1,
        stop_tokens: Sequence[int] = (),
    ) -> Iterator[Ints]:
        """Draw tokens by the rule of `gptkit.sampling.generate`.

        Args:
            prompts: token ids, int64 (B, T).
            count: tokens to draw.
            sampling: temperature, top-k, top-p and seed.
            chunk: tokens to draw before yielding them, which waits for the device.
            stop_tokens: drawing ends when every row has drawn one of these.

        Yields:
            The next tokens, int64 (B, at most chunk); after its first stop token a row means
            nothing.
        """
        B = len(prompts)
        steps = self._idle.pop(B, None) or _Steps(self, B)
        try:
            yield from self._stream(steps, prompts, count, sampling, chunk, stop_tokens)
        finally:
            self._idle[B] = steps

    def _stream(
        self,
        steps: "_Steps",
        prompts: Ints,
        count: int,
        sampling: SamplingOptions,
        chunk: int,
        stop_tokens: Sequence[int],
    ) -> Iterator[Ints]:
        context = prompts[:, -self.block_size :]
        steps.begin(count, sampling)
        steps.start(context)
        drawn, ended = 0, np.zeros(len(prompts), np.bool_)
        while drawn < count and not ended.all():
            room = self.block_size - context.shape[1] + 1
            size = min(chunk, room, count - drawn, steps.left)
            new = steps.run(size)
            yield new
            drawn += size
            ended |= np.isin(new, stop_tokens).any(axis=1)
            context = np.concatenate([context, new], axis=1)
            if context.shape[1] > self.block_size:  # the cache is full
                context = context[:, -restart_length(self.block_size) :]
                steps.start(context)

    def prefill(self, tokens: Ints) -> list[NDArray[Any]]:
        """Keys and values of tokens (B, T), each (B, n_kv_head, T, head_size)."""
        B, T = tokens.shape
        feeds = {
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "position_ids": np.tile(np.arange(T), (B, 1)),
            **{name: self.empty_cache(B, 0) for name in self.cache_names},
        }
        present = [_present(name) for name in self.cache_names]
        with running(self.step_path):
            found: list[NDArray[Any]] = self.step_session.run(present, feeds)
        n_kv_head, _, head_size = self.cache_shape
        for cache in found:
            check_shape(cache, (B, n_kv_head, T, head_size), self.step_path)
        return found

    def _check_graphs(self, folder: Path) -> metadata.Metadata:
        """The metadata of `decode`, if the files hold the graphs that their names say."""
        step = metadata.of_session(self.step_session, self.step_path)
        decode = metadata.of_session(self.session, self.path)
        if (step.graph, decode.graph) != ("step", "decode"):
            raise ModelFileError(
                f"{folder}: {STEP_FILE} holds the graph {step.graph} and {DECODE_FILE} "
                f"{decode.graph}, instead of step and decode",
                hint=AGAIN,
            )
        return decode

    def _check_ports(self) -> str:
        """The type of the cache, if what both graphs take and give fits together."""
        real = FLOAT16 if self.metadata.dtype == "float16" else FLOAT
        past = dict.fromkeys(self.cache_names, (real, 4))
        present = {_present(name): port for name, port in past.items()}
        given = {output: INPUTS[name] for name, output in NEXT_INPUTS.items()}
        check_ports(self.session, self.path, INPUTS | past, given | present)
        given = {"logits": (FLOAT, 3)}
        check_ports(self.step_session, self.step_path, STEP_INPUTS | past, given | present)
        return real

    def _shape_of(self, caches: list[list[Any]]) -> tuple[int, int, int]:
        """The shape of all caches."""
        match caches:
            case [[int(n_kv_head), int(size), int(head_size)], *others] if (
                size == self.metadata.block_size and all(other == caches[0] for other in others)
            ):
                return n_kv_head, size, head_size
        raise ModelFileError(f"{self.path}: damaged: the shape of its cache", hint=AGAIN)


class _Steps:
    """The buffers of a batch size, and the two bindings that alternate on them.

    They are used by one call of `DecodeSession.stream` at a time.
    """

    def __init__(self, owner: DecodeSession, B: int) -> None:
        self.owner, self.turn = owner, 0
        self.capacity, self.batch_size = MAX_TABLE, B
        self.count, self.drawn, self.sampling = 0, 0, SamplingOptions()
        empty = owner.empty_cache(B, owner.block_size)
        self.caches = {name: self._buffer(empty) for name in owner.cache_names}
        constant: Arrays = {"uniforms": self._uniforms(), **_scalars(self.sampling)}
        self.constant = {name: self._buffer(value) for name, value in constant.items()}
        state: Arrays = {
            "input_ids": np.zeros((B, 1), np.int64),
            "length": np.zeros(B, np.int32),
            "draw": np.zeros(1, np.int64),
            "tokens_in": np.zeros((self.capacity, B), np.int64),
        }
        self.states = [
            {name: self._buffer(value) for name, value in state.items()} for _ in range(2)
        ]
        self.bindings = [self._bind(*self.states), self._bind(*reversed(self.states))]
        self.run_options = [self._make_run_options() for _ in self.bindings]

    def begin(self, count: int, sampling: SamplingOptions) -> None:
        """Prepare to draw `count` tokens with these options."""
        self.count, self.drawn, self.sampling = count, 0, sampling
        for name, value in _scalars(sampling).items():
            self.constant[name].update_inplace(value)
        self._fill_table()

    def start(self, context: Ints) -> None:
        """Fill the cache with all but the last token of a context (B, T); that one is fed next."""
        B, T = context.shape
        for name, past in zip(self.caches, self._full_cache(context[:, :-1]), strict=True):
            self.caches[name].update_inplace(past)
        state = self.states[self.turn]
        state["input_ids"].update_inplace(np.ascontiguousarray(context[:, -1:]))
        state["length"].update_inplace(np.full(B, T - 1, np.int32))

    @property
    def left(self) -> int:
        """How many tokens the next `run` can draw."""
        return self.capacity - self.drawn % self.capacity

    def run(self, count: int) -> Ints:
        """Draw at most `left` tokens and fetch them: int64 (B, count)."""
        first = self.drawn % self.capacity
        if self.drawn and first == 0:  # the table of random numbers is used up
            self._fill_table()
        with running(self.owner.path):
            for _ in range(count):
                binding, options = self.bindings[self.turn], self.run_options[self.turn]
                self.owner.session.run_with_iobinding(binding, options)
                self.turn = 1 - self.turn
        self.drawn += count
        table: Ints = self.states[self.turn]["tokens_in"].numpy()
        tokens = table[first : first + count].T.copy()  # the buffer will be written again
        vocab_size = self.owner.metadata.vocab_size
        check_drawn(tokens, self.batch_size, count, vocab_size, self.owner.path)
        return tokens

    def _fill_table(self) -> None:
        self.constant["uniforms"].update_inplace(self._uniforms())
        self.states[self.turn]["draw"].update_inplace(np.zeros(1, np.int64))

    def _uniforms(self) -> NDArray[np.float32]:
        """The random numbers of the next draws, (capacity, B); 0 for those that are not drawn."""
        table = np.zeros((self.capacity, self.batch_size), np.float32)
        for i, draw in enumerate(range(self.drawn, min(self.drawn + self.capacity, self.count))):
            table[i] = uniforms(self.sampling.seed, draw, self.batch_size)
        return table

    def _full_cache(self, tokens: Ints) -> list[NDArray[Any]]:
        """Buffers of block_size that begin with the keys and values of tokens (B, T >= 0)."""
        B, T = tokens.shape
        buffers = [self.owner.empty_cache(B, self.owner.block_size) for _ in self.caches]
        if T:
            for buffer, present in zip(buffers, self.owner.prefill(tokens), strict=True):
                buffer[:, :, :T] = present
        return buffers

    def _buffer(self, array: NDArray[Any]) -> ort.OrtValue:
        if not self.owner.on_cuda:
            return ort.OrtValue.ortvalue_from_numpy(array.copy())
        options = self.owner.session.get_provider_options()[CUDA]
        return ort.OrtValue.ortvalue_from_numpy(array, "cuda", int(options["device_id"]))

    def _bind(self, inputs: Buffers, outputs: Buffers) -> ort.IOBinding:
        binding = self.owner.session.io_binding()
        for name, buffer in {**self.constant, **inputs, **self.caches}.items():
            binding.bind_ortvalue_input(name, buffer)
        for name, output in NEXT_INPUTS.items():
            binding.bind_ortvalue_output(output, outputs[name])
        for name, buffer in self.caches.items():  # updated in place
            binding.bind_ortvalue_output(_present(name), buffer)
        return binding

    def _make_run_options(self) -> ort.RunOptions:
        options = ort.RunOptions()
        if self.owner.on_cuda:  # numbered from 1: onnxruntime uses 0 itself
            self.owner.recorded += 1
            options.add_run_config_entry("gpu_graph_id", str(self.owner.recorded))
        return options


def _scalars(sampling: SamplingOptions) -> Arrays:
    """The options of the rule as inputs of the graph `decode`."""
    return {
        "temperature": np.array([sampling.temperature], np.float32),
        "top_k": np.array([sampling.top_k], np.int64),
        "top_p": np.array([sampling.top_p], np.float32),
    }


def _present(name: str) -> str:
    """The output that belongs to an input `past_key_values.N.key` or `.value`."""
    return name.replace("past_key_values", "present")
