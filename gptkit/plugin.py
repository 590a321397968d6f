"""The plugin contract: everything that a plugin imports from gptkit, besides `gptkit.codec`.

A plugin is a frozen pydantic model. Its fields are the recipe's options, the docstring below a
field is that option's help, its methods are its behaviour; run-time state is a private attribute.
Its class declares the contract that it is written for: `contract = 1`.
A package announces a plugin by an entry point in `gptkit.datasets`, `gptkit.callbacks` or
`gptkit.formats`.
"""

from gptkit.codec import CONTRACT
from gptkit.contract.base import LocalPath, Plugin
from gptkit.contract.callback import EVENTS, Callback
from gptkit.contract.comparison import compare_logits
from gptkit.contract.dataset import Data, Dataset
from gptkit.contract.format import ExportAs, Format, ImportedModel, TrainedModel
from gptkit.contract.train_state import TrainState
from gptkit.data.download import cache_errors, cache_folder, cached, fetch
from gptkit.data.folder import find_files
from gptkit.data.progress import note, progress, silent
from gptkit.data.split import IGNORE, Split
from gptkit.data.token_file import TokenFile, map_tokens, read_tokens
from gptkit.data.transfer import download
from gptkit.errors import DataError, DownloadError, ExportError, RunError, UsageError
from gptkit.files import digest, lock, open_file, read_file, read_json, write_atomically
from gptkit.staging import staged
from gptkit.terminal import harmless

__all__ = [
    "CONTRACT",
    "EVENTS",
    "IGNORE",
    "Callback",
    "Data",
    "DataError",
    "Dataset",
    "DownloadError",
    "ExportAs",
    "ExportError",
    "Format",
    "ImportedModel",
    "LocalPath",
    "Plugin",
    "RunError",
    "Split",
    "TokenFile",
    "TrainState",
    "TrainedModel",
    "UsageError",
    "cache_errors",
    "cache_folder",
    "cached",
    "compare_logits",
    "digest",
    "download",
    "fetch",
    "find_files",
    "harmless",
    "lock",
    "map_tokens",
    "note",
    "open_file",
    "progress",
    "read_file",
    "read_json",
    "read_tokens",
    "silent",
    "staged",
    "write_atomically",
]
