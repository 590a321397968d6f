"""The onnxruntime decoder: weights in memory with a cache, from tokens to logits on a CPU.

Imports no torch. The graph is built for the weights, which onnxruntime reads where they are: they
are in no file of its own.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from gptkit import __version__
from gptkit.data.download import cache_folder
from gptkit.errors import ModelFileError
from gptkit.files import read_file, write_atomically
from gptkit.onnx.runtime.providers import open_session, running
from gptkit.recipe.options import GPTConfig
from gptkit.sampling.rule import Floats, Ints

Array = NDArray[Any]
DIGEST = 32  # bytes of a sha256, with which the file of a graph begins
MOST_BYTES = 1 << 30
"""Of such a file."""
KEPT = 64
"""Such files, the newest ones; a graph is built again in a quarter of a second."""


class WeightsSession:
    """A model in onnxruntime on the CPU, made from its weights.

    Args:
        config: of the model, for which `sizes.not_fused` says nothing.
        weights: float32 arrays by their names in a checkpoint; the session uses their memory.
        place: where they are from, for errors.

    Raises:
        ModelFileError: onnxruntime cannot load the graph.
    """

    def __init__(self, config: GPTConfig, weights: Mapping[str, Array], place: str) -> None:
        self.config, self.place, self._weights = config, place, weights
        self.session = self._open()
        self.cache_names = [
            port.name for port in self.session.get_inputs() if port.name.startswith("past")
        ]
        """The inputs that hold keys or values of a layer."""

    def _open(self) -> ort.InferenceSession:
        """Open the graph, which is kept in a file: onnxruntime reads it sooner than it is built."""
        path = cache_folder("graphs") / _key(self.config)
        with suppress(OSError, ModelFileError):
            contents = read_file(path, limit=MOST_BYTES)
            if contents[:DIGEST] == _digest(graph := contents[DIGEST:]):
                return open_session(graph, "cpu", weights=self._weights)
        graph = _build(self.config, self._weights)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, _digest(graph) + graph)
            _drop_old(path.parent)
        return open_session(graph, "cpu", weights=self._weights)


class OnnxDecoder:
    """Feeds tokens to a `WeightsSession` through a cache of its own.

    Args:
        owner: the model.
        batch_size: sequences that are decoded together.
    """

    def __init__(self, owner: WeightsSession, batch_size: int) -> None:
        config = owner.config
        self.owner, self.batch_size, self.block_size = owner, batch_size, config.block_size
        self._length = 0
        self._binding = owner.session.io_binding()
        shape = (batch_size, config.kv_heads, config.block_size, config.head_size)
        self._caches = {  # a binding does not keep their memory
            name: ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
            for name in owner.cache_names
        }
        for name, cache in self._caches.items():
            self._binding.bind_ortvalue_input(name, cache)
            present = name.replace("past_key_values", "present")
            self._binding.bind_ortvalue_output(present, cache)  # in place
        self._logits = np.zeros((batch_size, config.vocab_size), np.float32)
        self._bound_logits = ort.OrtValue.ortvalue_from_numpy(self._logits)
        self._binding.bind_ortvalue_output("logits", self._bound_logits)

    @property
    def length(self) -> int:
        """Tokens in the cache, at most block_size."""
        return self._length

    def prefill(self, tokens: Ints) -> Floats:
        """Empty the cache, then feed tokens (B, T); logits of the next, float32 (B, vocab_size)."""
        self._length = 0
        return self._run(tokens, total=tokens.shape[1])

    def step(self, tokens: Ints) -> Floats:
        """Feed a token per row, (B, 1), after the earlier ones; logits of the next."""
        return self._run(tokens, total=self.block_size)

    def _run(self, tokens: Ints, *, total: int) -> Floats:
        length = self._length + tokens.shape[1]
        last = np.full(self.batch_size, length - 1, np.int32)
        self._binding.bind_cpu_input("input_ids", np.ascontiguousarray(tokens))
        self._binding.bind_cpu_input("last", last)
        self._binding.bind_cpu_input("total", np.array(total, np.int32))
        with running(self.owner.place):
            self.owner.session.run_with_iobinding(self._binding)
        self._length = length
        return self._logits.copy()


def _key(config: GPTConfig) -> str:
    """The name of a graph: it depends on the model's sizes and on the code that builds it."""
    sources = sorted((Path(__file__).parents[1] / "graphs").glob("*.py"))
    parts = [__version__.encode(), config.model_dump_json().encode()]
    return hashlib.sha256(b"\n".join([*parts, *(p.read_bytes() for p in sources)])).hexdigest()


def _digest(graph: bytes) -> bytes:
    return hashlib.sha256(graph).digest()


def _drop_old(folder: Path) -> None:
    """Remove all but the newest graphs."""
    oldest_first = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
    for path in oldest_first[:-KEPT]:
        path.unlink()


def _build(config: GPTConfig, weights: Mapping[str, Array]) -> bytes:
    """The graph `following` without its weights: for each it names a file that is never read."""
    import onnx_ir as ir  # with sympy, a third of what the start costs

    from gptkit.onnx.graphs.following import following_model
    from gptkit.onnx.graphs.source import ExportSource
    from gptkit.onnx.graphs.weights import PRECISIONS

    model = following_model(ExportSource(config, weights, PRECISIONS["float32"]))
    for name in model.graph.initializers.keys() & weights.keys():
        value, array = model.graph.initializers[name], weights[name]
        value.const_value = ir.ExternalTensor(
            "weights", 0, array.nbytes, ir.DataType.FLOAT, shape=ir.Shape(array.shape), name=name
        )
    return ir.to_proto(model).SerializeToString()
