"""Documents to tokens: read here, encoded in several processes, written in order."""

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from hashlib import blake2b
from queue import SimpleQueue
from time import perf_counter
from types import TracebackType
from typing import Self

import numpy as np

from gptkit.plugin import RunError, note, progress
from gptkit_text.codec import TokenizerCodec
from gptkit_text.documents import Part, Reader
from gptkit_text.worker import Block, BlockEncoder, EncodedBlock, receive, send
from gptkit_text.writer import Writer

BLOCK = 1 << 22  # bytes of text that are encoded at once
MOST_TEXTS = 1 << 16  # in a block
SMALL = 1 << 23  # bytes of text that are encoded before processes are worth starting
EVERY = 5.0
"""Seconds between two journals, at least: what is encoded again after a kill."""
SHARE = 0.05
"""Of the time that journals may take, as where a million files must be looked at."""
FEWER = "if memory is short, set processes = 1 in [dataset]"


def encode(
    reader: Reader,
    codec: TokenizerCodec,
    writer: Writer,
    *,
    name: str,
    val_fraction: float,
    processes: int,
    check: Callable[[], None],
) -> None:
    """Write the tokens of all documents that the writer does not have yet.

    Args:
        reader: of the documents.
        codec: that gives the tokens.
        writer: of the tokens.
        name: of the text, for the progress.
        val_fraction: share of the documents for validation.
        processes: how many encode.
        check: raises if the files have changed; called before a journal is written.
    """
    if writer.parts:
        note(f"encoding {name} goes on after {writer.documents:,} documents, where it was stopped")
    due = perf_counter() + EVERY
    with progress(f"encoding {name}", total=reader.total) as advance:
        parts = reader.parts(lambda count: advance(count, f"{reader.documents:,} documents"))
        found = blocks(parts, val_fraction=val_fraction, join=codec.end is None, skip=writer.parts)
        with closing(in_order(found, codec, processes)) as encoded:
            for block, tokens in encoded:
                writer.write(block, tokens)
                if (begin := perf_counter()) >= due:
                    check()
                    writer.save()
                    now = perf_counter()
                    due = now + max(EVERY, (now - begin) / SHARE)


def blocks(
    parts: Iterable[Part], *, val_fraction: float, join: bool, skip: int = 0
) -> Iterator[Block]:
    """Documents, or pieces of long ones, in blocks, each with the split that it belongs to.

    Args:
        parts: of the documents.
        val_fraction: share of the documents for validation.
        join: put a line feed between two documents of a split.
        skip: how many parts to leave out at the beginning.
    """
    held, size = list[tuple[bytes, bool, bool]](), 0
    side, begun = False, {False: False, True: False}
    for number, part in enumerate(parts):
        text = part.text.encode()
        if part.first:
            side = is_validation(text, val_fraction)
            text = b"\n" + text if join and begun[side] else text
            begun[side] = True
        if number < skip:
            continue
        held.append((text, part.first, side))
        size += len(text)
        if size >= BLOCK or len(held) >= MOST_TEXTS:
            yield _block(held)
            held, size = [], 0
    if held:
        yield _block(held)


def is_validation(text: bytes, val_fraction: float) -> bool:
    """Whether a document is for validation: by a hash, so that it never depends on the others.

    Args:
        text: of its first part.
        val_fraction: share of all possible hashes.
    """
    number = int.from_bytes(blake2b(text, digest_size=8).digest(), "big")
    return number < val_fraction * 2.0**64


def in_order(
    found: Iterable[Block], codec: TokenizerCodec, processes: int
) -> Generator[tuple[Block, EncodedBlock], None, None]:
    """Blocks with their tokens, in order; a small text is encoded in this process alone."""
    encoder, size, left = BlockEncoder(codec), 0, iter(found)
    for block in left:
        yield block, encoder.encode(block.texts, block.firsts)
        size += sum(map(len, block.texts))
        if processes > 1 and size >= SMALL and sys.executable:
            break
    else:
        return
    waiting = deque[tuple[Block, Future[EncodedBlock]]]()
    with Workers(codec, encoder.dtype, processes) as workers:
        for block in left:
            waiting.append((block, workers.submit(block)))
            if len(waiting) > 2 * processes:  # bounds the memory
                block, future = waiting.popleft()
                yield block, future.result()
        for block, future in waiting:
            yield block, future.result()


class Workers:
    """Processes that encode blocks, each with a thread of this process that waits for it."""

    def __init__(self, codec: TokenizerCodec, dtype: str, count: int) -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="gptkit-text")
        self._all = list[_Worker]()
        self._idle = SimpleQueue[_Worker]()
        try:
            for _ in range(count):
                self._all.append(_Worker(codec, dtype))
                self._idle.put(self._all[-1])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, block: Block) -> "Future[EncodedBlock]":
        """Encode a block as soon as a process is idle."""
        return self._threads.submit(self._encode, block)

    def close(self) -> None:
        """End the processes at once; what they still encode is lost."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._all:
            worker.process.kill()
        self._threads.shutdown()
        for worker in self._all:
            worker.close()

    def _encode(self, block: Block) -> EncodedBlock:
        worker = self._idle.get()
        try:
            return worker.encode(block)
        finally:
            self._idle.put(worker)


def _block(held: Sequence[tuple[bytes, bool, bool]]) -> Block:
    texts, firsts, validation = zip(*held, strict=True)
    return Block(texts, np.array(firsts), np.array(validation))


class _Worker:
    """A process that encodes blocks."""

    def __init__(self, codec: TokenizerCodec, dtype: str) -> None:
        self._codec: bytes | None = codec.model_dump_json().encode()
        self._dtype = dtype
        # The same modules as here, from the same places; and no threads: the processes are enough.
        path = os.pathsep.join(map(os.path.abspath, sys.path))
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "gptkit_text.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},
                process_group=0,  # Ctrl-C in a terminal reaches only this process, which ends them
            )
        except OSError as error:
            raise RunError(
                f"no process can be started to encode text: {error.strerror}", hint=FEWER
            ) from error

    def encode(self, block: Block) -> EncodedBlock:
        """The tokens of a block.

        Raises:
            RunError: the process has ended.
        """
        requests, answers = self.process.stdin, self.process.stdout
        assert requests and answers
        try:
            if self._codec is not None:
                send(requests, self._codec)
                self._codec = None
            sizes = np.array([len(text) for text in block.texts], np.int64)
            send(requests, sizes.tobytes(), block.firsts.tobytes(), b"".join(block.texts))
            lengths, hashes, tokens = receive(answers, 3)
        except (OSError, EOFError) as error:
            raise RunError(
                f"a process that encodes text has ended (exit code {self.process.wait()})",
                hint=FEWER,
            ) from error
        return EncodedBlock(
            np.frombuffer(lengths, np.int64),
            np.frombuffer(hashes, np.uint64),
            np.frombuffer(tokens, self._dtype),
        )

    def close(self) -> None:
        """Wait for the end of the killed process."""
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):  # what was left to write has no reader
                assert pipe
                pipe.close()
