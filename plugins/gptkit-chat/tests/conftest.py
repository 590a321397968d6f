"""Fixtures of this plugin's tests: a private cache, tokenizers of models, and a trained run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = "How are you? I am fine, thank you. What is the capital of France? Paris, user system [x]"

TINY: dict[str, Any] = {
    "seed": 1,
    "dataset": {"use": "chat", "block_size": 64, "val_fraction": 0.2, "template": "chatml"},
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 32, "position": "rotary", "norm": "rmsnorm"},
    "train": {"steps": 6, "batch_size": 2, "eval_every": 3, "save_every": 3, "device": "cpu"},
}
"""A recipe that trains in seconds."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that plugins cache in, instead of the user's."""
    monkeypatch.setenv("GPTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a folder as the Hub has them: a byte-level tokenizer, special tokens, a template."""

    def write(template: str | None, special: list[str], **names: str) -> Path:
        folder = tmp_path_factory.mktemp("model")
        library = Tokenizer(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=330, initial_alphabet=alphabet, show_progress=False
        )
        library.train_from_iterator([TEXT] * 3, trainer)
        library.add_special_tokens(special)
        library.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
        config |= {"chat_template": template} if template else {}
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return folder

    return write


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Path]:
    """Writes `chat.toml`; a keyword updates a table of `TINY`."""

    def write(**changes: dict[str, Any]) -> Path:
        tables = {key: value | changes.get(key, {}) if isinstance(value, dict) else value
                  for key, value in TINY.items()}  # fmt: skip
        path = tmp_path / "chat.toml"
        path.write_text(tomli_w.dumps(tables), encoding="utf-8")
        return path

    return write


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows of JSON, or lines as they are, into chats.jsonl."""

    def write(*values: Any, name: str = "chats.jsonl") -> Path:
        lines = [v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write
