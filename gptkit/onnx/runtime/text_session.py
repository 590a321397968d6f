"""Features and logits of whole texts in onnxruntime, from a graph `generate`. Imports no torch."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptkit.onnx.runtime.providers import open_session
from gptkit.sampling.rule import Floats, Ints

DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class TextSession:
    """Computes features and logits of all tokens of a text.

    Args:
        path: of a file with the graph `generate`; a bundle's weights are beside it.
        device: "cpu", "cuda", "cuda:N" or "auto".

    Raises:
        ModelFileError: the graph is not built as gptkit builds it.
        UsageError: the device is not available.
    """

    def __init__(self, path: Path, device: str) -> None:
        import onnx  # drawing samples does without this package

        from gptkit.onnx.graphs import text

        generate = onnx.load(path, load_external_data=False)
        model, self._features = text.text_model(generate, path)
        self._ids, self._logits = text.NEW_IDS, text.LOGITS
        self.session = open_session(model.SerializeToString(), device, weights_folder=path.parent)
        inputs = self.session.get_inputs()
        self._empty_cache = {x.name: _empty(x) for x in inputs if x.name != self._ids}

    def logits(self, tokens: Ints) -> Floats:
        """Logits after each of the tokens (T,), float32 (T, vocab_size)."""
        return self._run(self._logits, tokens)

    def features(self, tokens: Ints) -> Floats:
        """Features of the tokens (T,) after the last norm, float32 (T, n_embd)."""
        return self._run(self._features, tokens)

    def _run(self, output: str, tokens: Ints) -> Floats:
        found = self.session.run([output], {self._ids: tokens[None], **self._empty_cache})[0]
        return np.asarray(found, np.float32)


def _empty(declared: Any) -> NDArray[Any]:
    """A cache input without tokens: 0 for a length, else an array of one row and length 0."""
    sizes = {"batch": 1}
    shape = [size if isinstance(size, int) else sizes.get(size, 0) for size in declared.shape]
    return np.zeros(shape, DTYPES[declared.type])
