"""A kit at work: `model.onnx` reads the prompt, `decode.onnx` draws token by token. No torch.

The cache, the tokens and everything else that a step hands to the next stay in buffers on the
device. Two bindings take turns: what one writes, the other reads. On CUDA each is recorded as a
graph, so that a step costs a single launch.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from gptkit.onnx.runtime.providers import CUDA, open_session, provider
from gptkit.sampling.rule import Ints, SamplingOptions, uniforms

STEP_FILE, DECODE_FILE = "model.onnx", "decode.onnx"
HANDED_ON = {
    "input_ids": "next_ids", "length": "next_length", "draw": "next_draw", "tokens_in": "tokens",
}  # fmt: skip
"""What a step needs, and which output of the step before it is."""
Arrays = dict[str, NDArray[Any]]

MOST_DRAWS = 1024
"""Tokens for which random numbers are kept ready, and that are kept until they are looked at."""
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class DecodeSession:
    """Draws from a kit's graphs.

    Args:
        folder: of the kit.
        device: "cpu", "cuda", "cuda:N" or "auto".
        threads: of the CPU; None takes one per core.
    """

    burst = 1
    """Tokens between two looks where somebody watches."""

    def __init__(self, folder: Path, device: str, *, threads: int | None = None) -> None:
        self.reader = open_session(folder / STEP_FILE, device, threads=threads)
        self.session = open_session(
            folder / DECODE_FILE, device, threads=threads, enable_cuda_graph="1"
        )
        inputs = self.session.get_inputs()
        self.caches = [x for x in inputs if x.name.startswith("past_key_values.")]
        self.recorded = 0
        """CUDA graphs so far."""

    @property
    def on_cuda(self) -> bool:
        """Whether buffers are on a GPU."""
        return provider(self.session) == CUDA

    @property
    def cache_names(self) -> list[str]:
        """Of the inputs that are keys or values of a layer."""
        return [cache.name for cache in self.caches]

    @property
    def block_size(self) -> int:
        """Tokens that a cache holds."""
        size: int = self.caches[0].shape[2]
        return size

    def empty_cache(self, batch_size: int, length: int) -> NDArray[Any]:
        """Keys or values of one layer."""
        _, n_kv_head, _, head_size = self.caches[0].shape
        return np.zeros((batch_size, n_kv_head, length, head_size), DTYPES[self.caches[0].type])

    def stream(
        self, prompts: Ints, count: int, sampling: SamplingOptions, *, burst: int = 1
    ) -> Iterator[Ints]:
        """Draw tokens; the rule is that of `gptkit.sampling.generate`.

        Args:
            prompts: token ids, int64 (B, T), all of one length.
            count: tokens to draw.
            sampling: the rule's settings.
            burst: steps between two looks at the tokens, which wait for the device.

        Yields:
            The next tokens, int64 (B, at most burst).
        """
        context = prompts[:, -self.block_size :]
        steps = _Steps(self, len(prompts), count, sampling)
        steps.start(context)
        drawn = 0
        while drawn < count:
            room = self.block_size - context.shape[1] + 1
            size = min(burst, room, count - drawn, steps.left)
            new = steps.run(size)
            yield new
            drawn += size
            context = np.concatenate([context, new], axis=1)
            if context.shape[1] > self.block_size:  # the cache is full
                context = context[:, -max(1, self.block_size // 2) :]
                steps.start(context)

    def read(self, tokens: Ints) -> list[NDArray[Any]]:
        """Keys and values of tokens (B, T), each (B, n_kv_head, T, head_size)."""
        B, T = tokens.shape
        feeds = {
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "position_ids": np.tile(np.arange(T), (B, 1)),
            **{name: self.empty_cache(B, 0) for name in self.cache_names},
        }
        present = [name.replace("past_key_values", "present") for name in self.cache_names]
        found: list[NDArray[Any]] = self.reader.run(present, feeds)
        return found


class _Steps:
    """The buffers of one drawing, and the two bindings that take turns on them."""

    def __init__(self, owner: DecodeSession, B: int, count: int, sampling: SamplingOptions) -> None:
        self.owner, self.sampling, self.turn = owner, sampling, 0
        self.capacity, self.drawn, self.batch_size = min(count, MOST_DRAWS), 0, B
        empty = owner.empty_cache(B, owner.block_size)
        self.caches = {name: self._buffer(empty) for name in owner.cache_names}
        fixed: Arrays = {
            "uniforms": self._uniforms(),
            "temperature": np.array([sampling.temperature], np.float32),
            "top_k": np.array([sampling.top_k], np.int64),
            "top_p": np.array([sampling.top_p], np.float32),
        }
        self.fixed = {name: self._buffer(value) for name, value in fixed.items()}
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
        self.options = [self._run_options() for _ in self.bindings]

    def start(self, context: Ints) -> None:
        """Read all but the last token of a context (B, T); the next step feeds that one."""
        B, T = context.shape
        for name, past in zip(self.caches, self._read(context[:, :-1]), strict=True):
            self.caches[name].update_inplace(past)
        state = self.states[self.turn]
        state["input_ids"].update_inplace(np.ascontiguousarray(context[:, -1:]))
        state["length"].update_inplace(np.full(B, T - 1, np.int32))

    @property
    def left(self) -> int:
        """Tokens that can be drawn before `run` has to return."""
        return self.capacity - self.drawn % self.capacity

    def run(self, count: int) -> Ints:
        """Draw at most `left` tokens, then look at them: int64 (B, count)."""
        first = self.drawn % self.capacity
        if self.drawn and first == 0:  # the table is used up
            self.fixed["uniforms"].update_inplace(self._uniforms())
            self.states[self.turn]["draw"].update_inplace(np.zeros(1, np.int64))
        for _ in range(count):
            self.owner.session.run_with_iobinding(self.bindings[self.turn], self.options[self.turn])
            self.turn = 1 - self.turn
        self.drawn += count
        tokens: Ints = self.states[self.turn]["tokens_in"].numpy()
        return tokens[first : first + count].T.copy()  # the buffer is written again

    def _uniforms(self) -> NDArray[np.float32]:
        """The random numbers of the next draws, (capacity, B)."""
        draws = range(self.drawn, self.drawn + self.capacity)
        rows = [uniforms(self.sampling.seed, draw, self.batch_size) for draw in draws]
        return np.array(rows, np.float32)

    def _read(self, tokens: Ints) -> list[NDArray[Any]]:
        """The whole cache after tokens (B, T), which may be none."""
        B, T = tokens.shape
        whole = [self.owner.empty_cache(B, self.owner.block_size) for _ in self.caches]
        if T:
            for cache, present in zip(whole, self.owner.read(tokens), strict=True):
                cache[:, :, :T] = present
        return whole

    def _buffer(self, array: NDArray[Any]) -> ort.OrtValue:
        if not self.owner.on_cuda:
            return ort.OrtValue.ortvalue_from_numpy(array.copy())
        options = self.owner.session.get_provider_options()[CUDA]
        return ort.OrtValue.ortvalue_from_numpy(array, "cuda", int(options["device_id"]))

    def _bind(
        self, read: dict[str, ort.OrtValue], written: dict[str, ort.OrtValue]
    ) -> ort.IOBinding:
        binding = self.owner.session.io_binding()
        for name, buffer in {**self.fixed, **read, **self.caches}.items():
            binding.bind_ortvalue_input(name, buffer)
        for name, output in HANDED_ON.items():
            binding.bind_ortvalue_output(output, written[name])
        for name, buffer in self.caches.items():  # written where it is read
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), buffer)
        return binding

    def _run_options(self) -> ort.RunOptions:
        options = ort.RunOptions()
        if self.owner.on_cuda:  # 0 is taken
            self.owner.recorded += 1
            options.add_run_config_entry("gpu_graph_id", str(self.owner.recorded))
        return options
