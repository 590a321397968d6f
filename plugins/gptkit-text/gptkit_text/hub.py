"""Data sets on the Hugging Face Hub: their files, fetched once into the Hub's own cache."""

from pathlib import Path
from typing import NoReturn

from gptkit.plugin import DataError, DownloadError, find_files
from gptkit_text.files import ENDINGS, ENDINGS_TOLD

ABOUT = ("README.md", "dataset_infos.json")
"""Files at the top of a data set that tell about it."""


def fetch_dataset(name: str) -> list[Path]:
    """The files of a data set that have a known ending, sorted by their paths.

    The library that fetches them honours HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE. A file
    that is in its cache is not fetched again.

    Args:
        name: "owner/name"; or "owner/name/folder" for what is below one of its folders.

    Raises:
        DataError: huggingface_hub is not installed, there is no such data set or folder, it may
            not be read, it has no file with a known ending, or it is not in the cache and the
            network must not be used.
        DownloadError: it cannot be downloaded.
    """
    parts = name.split("/")
    repository, folder = "/".join(parts[:2]), "/".join(part for part in parts[2:] if part)
    inside = f"{folder}/" if folder else ""
    snapshot = _snapshot(repository, [f"{inside}*{ending}" for ending in ENDINGS])
    place = snapshot / folder
    files = find_files(place, endings=ENDINGS) if place.is_dir() else []
    about = [snapshot / name for name in ABOUT]
    if not (found := [file for file in files if file not in about]):
        raise DataError(
            f"hf = {name!r}: no file of the data set ends in one of {ENDINGS_TOLD}",
            hint=f"see its files at https://huggingface.co/datasets/{repository}/tree/main",
        )
    return found


def _snapshot(name: str, patterns: list[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise DataError(
            f"hf = {name!r}: needs the package huggingface_hub, which is not installed",
            hint='pip install "gptkit-text[hub]"',
        ) from error
    try:
        folder = snapshot_download(
            name, repo_type="dataset", allow_patterns=patterns, ignore_patterns=[*ABOUT]
        )
    except Exception as error:  # also those of the HTTP library, which changed over the years
        _explain(name, error)
    return Path(folder)


def _explain(name: str, error: Exception) -> NoReturn:
    """Raise what a user can act on."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    page = f"https://huggingface.co/datasets/{name}"
    if isinstance(error, HFValidationError):
        raise DataError(
            f"hf = {name!r}: not the name of a data set", hint='write it as "owner/name"'
        ) from error
    if isinstance(error, GatedRepoError):
        raise DataError(
            f"hf = {name!r}: may be read only by those who accepted its terms",
            hint=f"accept them at {page}, and set HF_TOKEN",
        ) from error
    if isinstance(error, RepositoryNotFoundError):
        raise DataError(
            f"hf = {name!r}: no such data set, or a private one",
            hint=f"check {page}; for a private one, set HF_TOKEN",
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise DataError(
            f"hf = {name!r}: not, or not completely, in the Hub's cache, and HF_HUB_OFFLINE is set",
            hint="unset HF_HUB_OFFLINE, or fetch it once with a network",
        ) from error
    reason = str(error).strip().splitlines() or [type(error).__name__]
    raise DownloadError(
        f"hf = {name!r}: cannot be downloaded: {reason[0]}",
        hint="check the network and the disk, and try again; what came is kept",
    ) from error
