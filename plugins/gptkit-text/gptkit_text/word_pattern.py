"""Tokenizers that divide texts into words as GPT-2's does."""

import json
from itertools import pairwise

from gptkit_text.tokenizer_file import Spec, byte_symbols, read_tokenizer

GPT2 = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+"
    r"|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+"
)
"""GPT-2's words (Radford et al. 2019), for JavaScript, whose `\\s` is not Unicode's white space."""


def splits_words(tokenizer: str) -> bool:
    """Whether a `tokenizer.json` divides texts into GPT-2's words, and by nothing else."""
    if not tokenizer:
        return False
    spec: Spec = json.loads(tokenizer)
    split = spec["pre_tokenizer"] or {}
    return (
        spec["model"]["type"] == "BPE"
        and spec["normalizer"] is None
        and split.get("type") == "ByteLevel"
        and split.get("use_regex", True)
        and not split.get("add_prefix_space", True)
        and all(token["special"] for token in spec["added_tokens"])
    )


def word_pattern(tokenizer: str) -> str | None:
    """The pattern of GPT-2's words, if the lowest id comes first in them; None if it does not.

    That is so if ids are in the order of the merges, and if every token is what its own bytes are
    merged to: then the two neighbours that form a token are those of its merge, in any word.
    """
    if not splits_words(tokenizer):
        return None
    file = read_tokenizer(tokenizer)
    model = file.spec["model"]
    ids = [model["vocab"]["".join(merge)] for merge in model["merges"]]
    special = {token["content"] for token in file.spec["added_tokens"]}
    same = (
        not model.get("ignore_merges")
        and model["vocab"].keys() >= set(byte_symbols())
        and all(first < second for first, second in pairwise(ids))
        and all(
            [token.id for token in file.library.model.tokenize(piece)] == [number]
            for piece, number in model["vocab"].items()
            if piece not in special
        )
    )
    return GPT2 if same else None
