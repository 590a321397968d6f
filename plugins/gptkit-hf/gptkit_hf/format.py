"""The format `hf`: folders of transformers, and models on the Hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import PositiveFloat

from gptkit.plugin import Format, ImportedModel, TrainedModel, UsageError
from gptkit_hf import folder, hub, push, write
from gptkit_hf.families import choose
from gptkit_hf.shape import Shape


class HuggingFace(Format):
    """A folder that transformers, vLLM and other programs open, without code of its own."""

    contract = 1
    suffix: ClassVar[str] = ""

    onnx: bool = True
    """Also write onnx/model.onnx, where transformers.js looks."""
    max_shard_gb: PositiveFloat = 5.0
    """Gigabytes of a file of weights; larger models are divided."""
    push: str | None = None
    """Upload what was written to this model of the Hub, "OWNER/NAME"."""
    private: bool = False
    """A model that the upload makes can be read by its owner alone."""
    dry_run: bool = False
    """Only say what would be uploaded."""

    def default_path(self) -> Path:
        """The folder hf."""
        return Path("hf")

    def check(self, path: Path) -> None:
        """Refuse a place with anything but an earlier export, and a name that is none."""
        if self.push is not None:
            push.check_name(self.push)
        if path.is_dir():
            if not write.is_export(path):
                super().check(path)
            elif others := write.not_written(path):
                raise UsageError(
                    f"{path}: has {others[0]} beside an earlier export; it would be deleted",
                    hint="choose another place: --out FOLDER",
                )
        elif path.exists():
            raise UsageError(f"{path}: is a file", hint="choose a folder: --out FOLDER")

    def reads(self, source: str) -> bool:
        """Whether it is a folder with a config.json, or may be the name of a model on the Hub."""
        path = Path(source)
        if path.exists():
            return path.is_dir() and (path / "config.json").exists()
        local = path.parent.is_dir() or path.suffix in (".gguf", ".safetensors", ".onnx", ".bin")
        return hub.is_name(source) and not local

    def read(self, source: str) -> ImportedModel:
        """The model of a folder or of the Hub; see `folder.imported`."""
        path, about = Path(source), {"format": "hf", "source": source}
        if not path.exists() and hub.is_name(source):
            path, about["revision"] = hub.fetch_model(source)
        if not path.is_dir():
            raise UsageError(f"{source}: no such folder", hint="a folder, or OWNER/NAME of the Hub")
        return folder.imported(path, about=about)

    def opens_as(self, config: Mapping[str, Any]) -> str:
        """The class of transformers that opens a model of this config."""
        return choose(Shape.of(config)).architecture

    def write(self, model: TrainedModel, path: Path) -> None:
        """Write a folder, read it back and compare its logits and tokens with the model's."""
        write.write_folder(
            model,
            path,
            name=self.push or path.name,
            onnx=self.onnx,
            shard_bytes=int(self.max_shard_gb * 1e9),
        )

    def written(self, path: Path) -> None:
        """Upload the folder, if that was asked for."""
        if self.push is not None:
            push.push(path, self.push, private=self.private, dry_run=self.dry_run)
