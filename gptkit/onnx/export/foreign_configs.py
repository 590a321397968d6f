"""Config files of a bundle that other programs read.

Formats: transformers' config.json, onnxruntime-genai's genai_config.json (type "decoder"),
Hugging Face tokenizers' tokenizer.json.
"""

import json
from collections.abc import Sequence
from typing import Any

import torch

from gptkit.codec import Codec, TextCodec
from gptkit.errors import PluginError
from gptkit.model.gpt import GPT
from gptkit.onnx.export.legend import make_legend
from gptkit.onnx.runtime.decode_session import STEP_FILE
from gptkit.recipe.options import GPTConfig
from gptkit.sampling.rule import Ints

CONFIG_FILES = ("config.json", "genai_config.json", "tokenizer.json", "tokenizer_config.json")


def _visible_bytes() -> list[str]:
    """A visible character for each byte, as byte-level BPE has them (Radford et al. 2019)."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [code for code in range(256) if code not in visible]
    return [chr(byte if byte in visible else 256 + hidden.index(byte)) for byte in range(256)]


_BYTES = _visible_bytes()


def config_files(
    config: GPTConfig, codec: Codec, *, device: str, rarest: int
) -> dict[str, dict[str, Any]]:
    """The contents of the files by name.

    Args:
        config: of the model.
        codec: of the data that it was trained on.
        device: that the bundle is made for, "cpu" or "cuda".
        rarest: an id that prompts and texts hardly ever have.
    """
    files = {
        "config.json": model_config(config, codec.stop_tokens),
        "genai_config.json": genai_config(
            config,
            start=codec.starts[0][0],
            stop_tokens=codec.stop_tokens,
            rarest=rarest,
            temperature=codec.temperature,
            device=device,
        ),
    }
    if contents := tokenizer_contents(codec):
        files["tokenizer.json"] = contents
        files["tokenizer_config.json"] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.block_size,
            "clean_up_tokenization_spaces": False,
            **_end_token(contents, codec.stop_tokens),
        }
    return files


@torch.no_grad()
def rarest_token(model: GPT, text: Ints) -> int:
    """The id with the lowest mean probability over the positions of a text (1, T)."""
    return int(model.logits(torch.from_numpy(text)).softmax(dim=-1).mean(dim=(0, 1)).argmin())


def model_config(config: GPTConfig, stop_tokens: Sequence[int]) -> dict[str, Any]:
    """The sizes under transformers' names, and the GPTConfig."""
    return {
        "model_type": "gptkit",
        "architectures": ["GPT"],
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.inner_size,
        "max_position_embeddings": config.block_size,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        **({"eos_token_id": _one_or_all(stop_tokens)} if stop_tokens else {}),
        "gptkit": config.model_dump(mode="json"),
    }


def genai_config(
    config: GPTConfig,
    *,
    start: int,
    stop_tokens: Sequence[int],
    rarest: int,
    temperature: float,
    device: str,
) -> dict[str, Any]:
    """How onnxruntime-genai runs `model.onnx`.

    A text always ends at some token there, at id 0 if none is named; and prompts are read without
    the padding token. So the rarest id is the padding, and where nothing ends a text also the end.
    """
    providers: list[dict[str, Any]] = [{"cuda": {}}] if device == "cuda" else []
    return {
        "model": {
            "type": "decoder",
            "bos_token_id": start,
            "eos_token_id": _one_or_all(stop_tokens or [rarest]),
            "pad_token_id": rarest,
            "context_length": config.block_size,
            "vocab_size": config.vocab_size,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": providers},
                "filename": STEP_FILE,
                "head_size": config.head_size,
                "hidden_size": config.n_embd,
                "num_attention_heads": config.n_head,
                "num_hidden_layers": config.n_layer,
                "num_key_value_heads": config.kv_heads,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": True,
            "max_length": config.block_size,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": False,
            "repetition_penalty": 1.0,
            "temperature": temperature,
            "top_k": 0,
            "top_p": 1.0,
        },
    }


def tokenizer_contents(codec: Codec) -> dict[str, Any] | None:
    """The contents of tokenizer.json: the codec's own, or a tokenizer of single characters.

    None if the codec has none and its tokens are not one character each.

    Raises:
        PluginError: the codec's own is not a JSON object.
    """
    if not isinstance(codec, TextCodec):
        return None
    own = codec.tokenizer_json()
    if own is None:
        symbols = (make_legend(codec) or {}).get("text", [""])
        return tokenizer(symbols) if all(len(symbol) == 1 for symbol in symbols) else None
    try:
        contents = json.loads(own)
    except ValueError as error:
        raise PluginError(f"{type(codec).__name__}.tokenizer_json is no JSON: {error}") from error
    if not isinstance(contents, dict):
        raise PluginError(f"{type(codec).__name__}.tokenizer_json is no JSON object")
    return contents


def _end_token(contents: dict[str, Any], stop_tokens: Sequence[int]) -> dict[str, Any]:
    """The end token's name in tokenizer_config.json; what spells it in a text is no end token."""
    added = contents.get("added_tokens") or []
    names = [token["content"] for token in added if token["id"] in stop_tokens]
    return {"eos_token": names[0], "split_special_tokens": True} if names else {}


def _one_or_all(ids: Sequence[int]) -> int | list[int]:
    """A single id as a number, several as a list."""
    return ids[0] if len(ids) == 1 else list(ids)


def tokenizer(symbols: Sequence[str]) -> dict[str, Any]:
    """A tokenizer of single characters, as byte-level BPE, which onnxruntime-genai can read.

    Merges join the bytes of a character. The ids of single bytes follow the model's: a character
    that the model never saw becomes such ids, which the graphs refuse, instead of disappearing.
    """
    vocab = {_byte_level(symbol): i for i, symbol in enumerate(symbols)}
    merges: dict[str, None] = {}
    for character in list(vocab):
        for end in range(1, len(character)):
            start, byte = character[:end], character[end]
            merges[f"{start} {byte}"] = None
            for piece in (start, byte):
                vocab.setdefault(piece, len(vocab))
    for byte in _BYTES:
        vocab.setdefault(byte, len(vocab))
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": list(merges),
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
        },
    }


def _byte_level(character: str) -> str:
    """A character in byte-level BPE."""
    return "".join(_BYTES[byte] for byte in character.encode())
