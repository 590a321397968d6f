"""The contract of codecs as assertions."""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import EntryPoint, entry_points

from gptkit.codec import CONTRACT, Codec, ImageCodec, TextCodec, declared_contract

DRAWN = 64
"""Tokens of a made-up sample whose codec has no length."""
TORCH = 17
"""The exit code that says that a module imports torch."""


def check_codec(codec: Codec, *, prompts: Sequence[str] = (), vocab_size: int) -> None:
    """Assert the contract of codecs.

    Args:
        codec: with the options to test.
        prompts: prompts that it must be able to read.
        vocab_size: how many token ids there are.
    """
    kind = type(codec).__name__
    check_contract(type(codec))
    assert codec.suffix.startswith("."), f'{kind}.suffix must begin with a dot: "{codec.suffix}"'
    _check_json(codec)
    _check_starts(codec, vocab_size)
    for prompt in ("", *prompts):
        what = f"{kind}.encode({prompt!r})"
        tokens = codec.encode(prompt)
        _check_ids(tokens, what, vocab_size)
        assert tokens, f"{what} must give at least one token"
        assert isinstance(codec.decode(tokens), bytes), f"{kind}.decode must return bytes"
    if isinstance(codec, TextCodec):
        _check_text(codec, vocab_size)
        _check_prompts(codec, prompts)
    elif isinstance(codec, ImageCodec):
        _check_image(codec, vocab_size)
    else:
        drawn = codec.decode(_drawn(codec, vocab_size))
        assert isinstance(drawn, bytes), f"{kind}.decode must return bytes"
    _check_import(codec)


def check_contract(kind: type) -> None:
    """Assert that a plugin's class declares the contract of this gptkit."""
    declared = declared_contract(kind)
    assert declared == CONTRACT, (
        f"{kind.__name__} needs contract = {CONTRACT}, not {declared}: write it in the class"
    )


def _check_json(codec: Codec) -> None:
    kind = type(codec)
    options = json.loads(json.dumps(codec.model_dump(mode="json")))
    assert kind.model_validate(options) == codec, (
        f"{kind.__name__} must survive JSON: its fields may hold text, numbers, true, false, lists "
        f"and dicts, but not {options}"
    )


def _check_import(codec: Codec) -> None:
    """Assert that the codec's module is announced, quiet and free of torch."""
    kind, module = type(codec), type(codec).__module__
    announced = {entry.name for entry in entry_points(group="gptkit.codecs") if _is(entry, kind)}
    assert announced, (
        f'pyproject.toml must announce {kind.__name__}: [project.entry-points."gptkit.codecs"] '
        f'NAME = "{module}:{kind.__qualname__}"'
    )
    program = f"import sys, {module}; sys.exit({TORCH} * ('torch' in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False, text=True
    )
    assert result.returncode != TORCH, f"{module} must not import torch"
    assert result.returncode == 0, f"{module} cannot be imported alone: {result.stderr}"
    assert not result.stdout, f"{module} must not print when it is imported: {result.stdout}"


def _is(entry: EntryPoint, kind: type) -> bool:
    with suppress(Exception):  # another distribution's plugin, which cannot be imported
        return entry.value.partition(":")[2] == kind.__qualname__ and entry.load() is kind
    return False


def _check_starts(codec: Codec, vocab_size: int) -> None:
    kind, starts = type(codec).__name__, codec.starts
    assert starts, f"{kind}.starts must hold at least one start"
    for start in starts:
        _check_ids(start, f"{kind}.starts", vocab_size)
    lengths = {len(start) for start in starts}
    assert len(lengths) == 1, f"{kind}.starts must have the same number of tokens: {starts}"
    assert lengths != {0}, f"{kind}.starts must have at least one token each"
    assert isinstance(codec.stop_tokens, tuple), f"{kind}.stop_tokens must be a tuple"
    _check_ids(codec.stop_tokens, f"{kind}.stop_tokens", vocab_size)
    assert codec.length is None or codec.length > max(lengths), (
        f"{kind}.length must be more than the tokens of a start: it counts a whole sample"
    )


def _check_ids(tokens: Sequence[int], what: str, vocab_size: int) -> None:
    assert isinstance(tokens, list | tuple), f"{what} must be a list of ids, got {type(tokens)}"
    for token in tokens:
        assert type(token) is int, f"{what} must hold Python's integers, got {type(token)}"
        assert 0 <= token < vocab_size, f"{what} must hold ids below {vocab_size}, got {token}"


def _check_text(codec: TextCodec, vocab_size: int) -> None:
    kind, pieces = type(codec).__name__, list(codec.token_bytes)
    assert len(pieces) == vocab_size, (
        f"{kind}.token_bytes must have an item for every id: {vocab_size}, not {len(pieces)}"
    )
    for token, piece in enumerate(pieces):
        assert isinstance(piece, bytes), f"{kind}.token_bytes[{token}] must be bytes, got {piece!r}"
    ids = _drawn(codec, vocab_size)
    for tokens in ([token] for token in range(vocab_size)):
        assert codec.decode(tokens) == pieces[tokens[0]], (
            f"{kind}.decode({tokens}) must be token_bytes[{tokens[0]}], since text is shown while "
            "it is drawn: leave decode as it is in TextCodec"
        )
    assert codec.decode(ids) == b"".join(pieces[token] for token in ids), (
        f"{kind}.decode must join token_bytes: leave it as it is in TextCodec"
    )
    pattern = codec.word_pattern
    assert pattern is None or isinstance(pattern, str), f"{kind}.word_pattern must be text or None"
    contents = codec.tokenizer_json()
    assert contents is None or isinstance(json.loads(contents), dict), (
        f"{kind}.tokenizer_json must be the text of a tokenizer.json, or None"
    )


def _check_prompts(codec: TextCodec, prompts: Sequence[str]) -> None:
    """Assert that what other programs do with a prompt is what `encode` does."""
    start = codec.starts[0]
    if codec.decode(start):
        return
    for prompt in prompts:
        assert codec.encode(prompt)[: len(start)] in codec.starts, (
            f"{type(codec).__name__}.encode({prompt!r}) must begin with a start, {start}: it is no "
            "text, so exported models put it before every prompt"
        )


def _check_image(codec: ImageCodec, vocab_size: int) -> None:
    kind, starts = type(codec).__name__, codec.starts
    for color in codec.colors:
        assert len(color) == 3, f"{kind}.colors must be red, green and blue, got {color}"
        assert all(0 <= value <= 255 for value in color), f"{kind}.colors must be 0 to 255"
    assert len(starts) == max(1, len(codec.classes)), f"{kind}.starts must be one per class"
    for start, name in zip(starts, codec.classes, strict=False):
        assert codec.start("", label=name) == start, f"{kind}.start must give {name}'s start"
    samples = [_drawn(codec, vocab_size), _drawn(codec, vocab_size), starts[0]]
    for count in (1, 3):
        sheet = codec.sheet(samples[:count])
        assert isinstance(sheet, bytes), f"{kind}.sheet must return bytes"
        for width in (1, 80):
            shown = codec.preview(sheet, width=width)
            assert shown is None or isinstance(shown, str), f"{kind}.preview must be text or None"
    assert isinstance(codec.decode(samples[0]), bytes), f"{kind}.decode must return bytes"


def _drawn(codec: Codec, vocab_size: int) -> list[int]:
    """What a model could draw: a start, then any ids."""
    start = codec.starts[0]
    count = codec.length - len(start) if codec.length else DRAWN
    generator = random.Random(0)
    return [*start, *(generator.randrange(vocab_size) for _ in range(count))]
