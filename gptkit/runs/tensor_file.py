"""A safetensors file whose tensors are read one at a time."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NOT_OF_NUMPY = ("BF16", "F8_")
"""What the names of the dtypes begin with that numpy does not have."""


class Entry(NamedTuple):
    """What a file says of a tensor."""

    dtype: str
    """Its name in safetensors, such as "F32"."""
    shape: tuple[int, ...]


class TensorFile(Mapping[str, Any]):
    """The torch tensors of a file by name; each look-up reads one, so that only it takes memory.

    Without a look-up no torch is imported. The file may be deleted meanwhile.

    Args:
        path: of the file.

    Raises:
        OSError, SafetensorError: it cannot be read, or is none.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        file: Any = safe_open(path, "numpy")
        names: list[str] = file.keys()
        slices = {name: file.get_slice(name) for name in names}
        self.entries = {n: Entry(s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
        """Dtype and shape of every tensor."""
        numpys = not any(e.dtype.startswith(NOT_OF_NUMPY) for e in self.entries.values())
        self._file = file if numpys else safe_open(path, "pt")

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """Read a tensor without torch; one of a dtype that numpy does not have, as float32."""
        found = self._file.get_tensor(name)
        return found if isinstance(found, np.ndarray) else found.float().numpy()

    def __getitem__(self, name: str) -> Any:
        import torch

        if name not in self.entries:
            raise KeyError(name)
        found = self._file.get_tensor(name)
        return torch.from_numpy(found) if isinstance(found, np.ndarray) else found.clone()

    def __contains__(self, name: object) -> bool:
        return name in self.entries  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)
