"""Models on the Hugging Face Hub: their files, fetched once into the Hub's own cache."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

from gptkit.plugin import UsageError, note
from gptkit_hf.safetensors_files import CONVERT, INDEX, SINGLE
from gptkit_text.hub import explain

NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@(refs/[^/]+/[^/]+|[^/]+))?")
"""Owner and name, and a revision, which has no slash but in "refs/pr/1"."""
WEIGHTS = (SINGLE, INDEX, "model-*-of-*.safetensors")
TEXTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "README.md",
)


def is_name(source: str) -> bool:
    """Whether a text can be the name of a model on the Hub."""
    return NAME.fullmatch(source) is not None


def fetch_model(source: str) -> tuple[Path, str]:
    """The folder of a model in the Hub's cache, and the commit that it is of.

    The library that fetches it honours HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE.

    Args:
        source: "owner/name", the newest revision, or "owner/name@revision".

    Raises:
        UsageError: huggingface_hub is not installed, there is no such model, it may not be read,
            it has no safetensors, or it is not in the cache and the network must not be used.
        DownloadError: it cannot be downloaded, or not all of it.
    """
    parts = NAME.fullmatch(source)
    assert parts
    name, revision = parts.groups()
    try:
        from huggingface_hub import constants, snapshot_download
    except ImportError as error:
        raise UsageError(
            f"{source}: no such file or folder; to take it from the Hub needs the package "
            "huggingface_hub, which is not installed",
            hint='pip install "gptkit-hf[hub]"',
        ) from error
    try:
        wanted = [] if constants.HF_HUB_OFFLINE else _listed(source, name, revision)
        patterns = [*WEIGHTS, *TEXTS]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        # Where the network fails, the library gives what its cache has.
        if missing := [file for file in wanted if not (folder / file).exists()]:
            raise ConnectionError(f"{missing[0]} did not come")
    except UsageError:
        raise
    except Exception as error:  # also those of the HTTP library, which changed over the years
        explain(
            error,
            source,
            kind="model",
            page=page(name),
            revision=revision,
            wrong=UsageError,
            here="no such file or folder here; ",
        )
    note(f"{source}: revision {folder.name}")  # the folder is named by the commit
    return folder, folder.name


def _listed(source: str, name: str, revision: str | None) -> list[str]:
    """The files that have to come."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(name, revision=revision or "main")
    names = [file.rfilename for file in info.siblings or ()]
    patterns = (*WEIGHTS, *TEXTS)
    found = [each for each in names if any(fnmatchcase(each, pattern) for pattern in patterns)]
    if not any(each.endswith(".safetensors") for each in found):
        pickled = any(each.startswith("pytorch_model") for each in names)
        what = "its weights only in pytorch_model.bin" if pickled else "no model.safetensors"
        raise UsageError(f"{source}: has {what}", hint=CONVERT if pickled else f"see {page(name)}")
    return found


def page(name: str) -> str:
    """Where a person reads about a model."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{name}"
