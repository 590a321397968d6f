"""Features and logits of whole texts in onnxruntime, from a graph `generate`. Imports no torch."""

from pathlib import Path

import numpy as np

from gptkit.onnx.runtime.interface import check_shape
from gptkit.onnx.runtime.metadata import Metadata
from gptkit.onnx.runtime.providers import open_session, running
from gptkit.sampling.model import check_ids
from gptkit.sampling.rule import Floats, Ints


class TextSession:
    """Computes features and logits of all tokens of a text.

    Args:
        path: of a file with the graph `generate`; a bundle's weights are beside it.
        about: its metadata.
        device: "cpu", "cuda", "cuda:N" or "auto".

    Raises:
        ModelFileError: the graph is not built as gptkit builds it.
        UsageError: the device is not available.
    """

    def __init__(self, path: Path, about: Metadata, device: str) -> None:
        import onnx  # drawing samples does without this package

        from gptkit.onnx.graphs import text

        self.path, self.about = path, about
        generate = onnx.load(path, load_external_data=False)
        model, self._features = text.text_model(generate, path)
        self._ids, self._logits = text.PROMPT, text.LOGITS
        self.session = open_session(model.SerializeToString(), device, weights_folder=path.parent)

    def logits(self, tokens: Ints) -> Floats:
        """Logits after each of the tokens (T,), float32 (T, vocab_size)."""
        return self._run(self._logits, tokens, self.about.vocab_size)

    def features(self, tokens: Ints) -> Floats:
        """Features of the tokens (T,) after the last norm, float32 (T, n_embd)."""
        return self._run(self._features, tokens, self.about.config.n_embd)

    def _run(self, output: str, tokens: Ints, width: int) -> Floats:
        check_ids(tokens, self.about.vocab_size, most=self.about.block_size)
        ids = tokens[None].astype(np.int64)
        with running(self.path):
            found = np.asarray(self.session.run([output], {self._ids: ids})[0], np.float32)
        check_shape(found, (len(tokens), width), self.path)
        return found
