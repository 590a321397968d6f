"""A trained model as a GGUF file, proven equal to it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gptkit.plugin import RunError, TrainedModel, UsageError, compare_logits, note
from gptkit_gguf import keys, proof, rope
from gptkit_gguf.header import Header, read_header
from gptkit_gguf.names import layout
from gptkit_gguf.reading import file_logits
from gptkit_gguf.spelling import spell
from gptkit_gguf.writer import Dtype, write_file
from gptkit_hf.families import to_config
from gptkit_hf.mapping import ToHf
from gptkit_text.codec import TokenizerCodec

QUANTISATION = 2
"""The version of the layout of quantised blocks."""


WRITTEN_BY = "gptkit, data set "
"""With this begins what a file says of itself."""


def is_ours(path: Path) -> bool:
    """Whether gptkit wrote a file, so that it may replace it."""
    try:
        found = read_header(path).fields.get("general.description")
    except (UsageError, RunError):
        return False
    return isinstance(found, str) and found.startswith(WRITTEN_BY)


def write_model(model: TrainedModel, path: Path, dtype: Dtype) -> None:
    """Write a GGUF file and prove that it is the model.

    Raises:
        UsageError: llama.cpp cannot express the model; it names the options.
        ExportError: the file is not equal to the model.
    """
    config = to_config(model.config)
    keys.check(config, model.config)
    bare = model.about.get("add_bos_token") is False
    spelling = spell(model.codec, config["vocab_size"], bare=bare)
    tensors: Mapping[str, Tensor] = ToHf(model.config, model.weights)
    places = layout(config)
    write_file(
        path,
        fields=keys.keys_of(config) | _about(model, path),
        spelling=spelling,
        places=places,
        tensors=tensors,
        factors=_factors(config),
        dtype=dtype,
    )
    header = proof.read_back(path)
    proof.prove_tensors(header, places, tensors, dtype)
    if isinstance(model.codec, TokenizerCodec):
        proof.prove_tokenizer(header, model.codec, config["vocab_size"])
    _prove(model, computed(config), header, dtype)


def computed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of what llama.cpp computes: its GPT-2 has GELU's approximation alone."""
    if config.get("activation_function") == "gelu":
        return {**config, "activation_function": "gelu_new"}
    return dict(config)


def _prove(model: TrainedModel, config: Mapping[str, Any], header: Header, dtype: Dtype) -> None:
    sizes = model.config["vocab_size"], model.config["block_size"]
    ids = proof.proof_tokens(model.module, *sizes)
    wanted = proof.model_logits(model.module, ids)
    tolerance = proof.TOLERANCES[dtype]
    if model.config["mlp"] == "gelu":
        tolerance = max(tolerance, proof.GELU)
        note("gguf: llama.cpp computes GELU by its approximation: logits differ a little")
    hint = "nothing was kept; this is a fault of gptkit-gguf, please report it"
    found = file_logits(config, header, ids)
    compare_logits(header.path.name, wanted, found, tolerance=tolerance, hint=hint)


def _factors(config: Mapping[str, Any]) -> NDArray[np.float32] | None:
    scaling = keys.rope_scaling(config)
    if scaling is None:
        return None
    return rope.factors(scaling, keys.rope_theta(config), config["head_dim"])


def _about(model: TrainedModel, path: Path) -> dict[str, Any]:
    """The metadata of where the model comes from."""
    known = {key: model.about.get(key) for key in ("license", "organization", "basename")}
    return {
        "general.type": "model",
        "general.name": path.stem,
        "general.description": f"{WRITTEN_BY}{model.dataset}, step {model.step}",
        "general.quantization_version": QUANTISATION,
        **{f"general.{key}": value for key, value in known.items() if isinstance(value, str)},
    }
