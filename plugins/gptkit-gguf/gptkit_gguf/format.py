"""The format `gguf`: files for llama.cpp and what is built on it, read and written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from gptkit.plugin import Format, ImportedModel, TrainedModel, UsageError
from gptkit_gguf import keys
from gptkit_gguf.exporting import is_ours, write_model
from gptkit_gguf.reading import read_model
from gptkit_gguf.writer import Dtype
from gptkit_hf.families import to_config


class Gguf(Format):
    """GGUF files, which llama.cpp, Ollama and LM Studio open."""

    contract = 1
    suffix: ClassVar[str] = ".gguf"

    dtype: Dtype = "f32"
    """Type of the matrices: f32, f16 (half the size) or q8_0 (a quarter); vectors stay f32."""

    def check(self, path: Path) -> None:
        """Refuse a place where something else is than a file that this format wrote."""
        super().check(path)
        if path.exists() and not is_ours(path):
            raise UsageError(
                f"{path}: exists, and gptkit did not write it", hint="choose another place: --out"
            )

    def write(self, model: TrainedModel, path: Path) -> None:
        """Write a file and compare it with the model."""
        write_model(model, path, self.dtype)

    def opens_as(self, config: Mapping[str, Any]) -> str:
        """The architecture of llama.cpp, such as "llama"."""
        return keys.check(to_config(config), config)

    def reads(self, source: str) -> bool:
        """Whether the source is named like a GGUF file."""
        return source.lower().endswith(self.suffix)

    def read(self, source: str) -> ImportedModel:
        """Read the model in a file, which is mapped into memory part by part."""
        return read_model(Path(source).expanduser())
