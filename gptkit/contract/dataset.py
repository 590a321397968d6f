"""Dataset: a plugin that loads data; and Data, what it loads."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from gptkit.codec import Codec
from gptkit.contract.base import Plugin
from gptkit.contract.codec_check import check_ids, check_loaded
from gptkit.data.split import Split
from gptkit.errors import DataError


@dataclass(frozen=True)
class Data:
    """A loaded data set: everything that training and sampling need.

    Attributes:
        train: The split to train on.
        val: The split to measure the loss on.
        codec: Turns prompts into token ids, and token ids into text, images or other files.
        vocab_size: Number of token ids, which are 0 .. vocab_size - 1.
        block_size: Tokens of a window or an item: the model's context.
        sha256: Digest of the source, recorded with the run; a resumed run refuses another one.
            None is not compared.
        classes: Names of the classes, by label; empty if items have no classes.
        document_start: The token that begins every document, if a document shall be trained as if
            it were alone: its tokens see no other document in their window, and their positions
            count from its beginning. Sampling does not need it. None: windows are one text.
        document_end: The token that ends every document, for documents that begin with no token of
            their own: the next token begins another document, which does not see it.
    """

    train: Split
    val: Split
    codec: Codec
    vocab_size: int
    block_size: int
    sha256: str | None = None
    classes: tuple[str, ...] = ()
    document_start: int | None = None
    document_end: int | None = None

    def __post_init__(self) -> None:
        for name, split in (("training", self.train), ("validation", self.val)):
            if len(split) < 1:
                raise DataError(
                    f"the {name} split is shorter than one window of {self.block_size} tokens",
                    hint="use more data or a smaller block_size",
                )
        check_loaded(self.codec, self.vocab_size)
        for name in ("document_start", "document_end"):
            if (token := getattr(self, name)) is not None:
                check_ids([token], f"Data.{name}", self.vocab_size)


class Dataset(Plugin, ABC):
    """A source of training data; an entry point in `gptkit.datasets`."""

    changeable: ClassVar[frozenset[str]] = frozenset({"path"})
    """Options that a resumed run may change, since they say only where the data lies or how it is
    read: `Data.sha256` tells whether it is still the same."""

    @abstractmethod
    def load(self) -> Data:
        """Open the data; download or encode it first if that was not done before.

        Raises:
            DataError: the data cannot be used; names the file and the place in it.
            DownloadError: it cannot be downloaded.
        """
