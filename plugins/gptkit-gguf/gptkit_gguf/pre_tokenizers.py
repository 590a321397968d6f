"""How texts are divided into words: `tokenizer.ggml.pre` as parts of a tokenizer.json.

The patterns are those of the models' own tokenizers; llama.cpp has the same ones under these names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2_WORDS = BYTES | {"use_regex": True}
BYTES_OFFSETS = {"trim_offsets": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def _split(pattern: str) -> Spec:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


@dataclass(frozen=True)
class Words:
    """A way to divide texts into words, of bytes that visible characters stand for."""

    parts: tuple[Spec, ...]
    """Pre-tokenizers, one after the other."""
    whole: bool = False
    """A word that is a token is that token, whatever the merges say."""

    @property
    def spec(self) -> Spec:
        """As a tokenizer.json has it."""
        if len(self.parts) == 1:
            return self.parts[0]
        return {"type": "Sequence", "pretokenizers": list(self.parts)}


GPT2 = Words((GPT2_WORDS,))
SINGLE_DIGITS = Words((DIGITS, GPT2_WORDS))
LLAMA3 = (_split(rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{REST}"), BYTES)
QWEN2 = Words((_split(rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{REST}"), BYTES))
DEFAULT = Words(
    (_split(r"[\p{P}\$\+<=>\^~\|]+"), _split(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
    ), _split(r"\p{N}+"), _split("[0-9][0-9][0-9]"), BYTES)
)  # fmt: skip
"""llama.cpp's own, for files that name none."""

KINDS: Mapping[str, Words] = {
    "gpt-2": GPT2,
    "smollm": SINGLE_DIGITS,
    "llama-bpe": Words(LLAMA3, whole=True),
    "qwen2": QWEN2,
    "dbrx": Words(LLAMA3),
    "default": DEFAULT,
    **dict.fromkeys(("mpt", "olmo", "phi-2"), GPT2),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell"), SINGLE_DIGITS),
    **dict.fromkeys(("llama3", "llama-v3"), Words(LLAMA3, whole=True)),
    **dict.fromkeys(("stablelm2", "deepseek-r1-qwen"), QWEN2),
    "smaug-bpe": Words(LLAMA3),
}
"""By name; of names that mean the same, the first one is written."""


def name_of(spec: Spec) -> str | None:
    """The name for the way in which a tokenizer.json divides texts; None if there is none."""
    part = spec["pre_tokenizer"]
    if spec["normalizer"] is not None or part is None:
        return None
    parts = part["pretokenizers"] if part["type"] == "Sequence" else [part]
    plain = [each | BYTES_OFFSETS if "trim_offsets" in each else each for each in parts]
    whole = bool(spec["model"].get("ignore_merges"))
    names = (name for name, words in KINDS.items() if plain == list(words.parts))
    return next((name for name in names if KINDS[name].whole == whole), None)
