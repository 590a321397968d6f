"""Data sets on the Hugging Face Hub: their files, fetched once into the Hub's own cache."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn

from gptkit.plugin import DataError, DownloadError, UsageError, find_files, note
from gptkit_text.files import ENDINGS, told

ABOUT = ("README.md", "dataset_infos.json")
"""Files at the top of a data set that tell about it."""
HUB_NAME = re.compile(r"([^/@]+(?:/[^/@]+)?)(?:@(refs/[^/]+/[^/]+|[^/]+))?(?:/(.*))?")
"""Repository, revision and folder on the Hub; a revision has no slash but in "refs/pr/1"."""


def fetch_dataset(name: str, endings: Sequence[str] = ENDINGS) -> list[Path]:
    """The files of a data set that have one of these endings, sorted by their paths.

    The library that fetches them honours HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE. A file
    that is in its cache is not fetched again.

    Args:
        name: "owner/name", the newest revision; "owner/name@revision", a branch, a tag or a
            commit; either with "/folder" for what is below one of its folders.
        endings: in small letters.

    Raises:
        DataError: huggingface_hub is not installed, there is no such data set or folder, it may
            not be read, it has no file with such an ending, or nothing of it is in the cache and
            the network must not be used.
        DownloadError: it cannot be downloaded, or not all of it.
    """
    parts = HUB_NAME.fullmatch(name)
    repository, revision, folder = parts.groups() if parts else (name, None, None)
    inside = f"{folder.strip('/')}/" if folder else ""
    snapshot = _snapshot(repository, revision, [f"{inside}*{ending}" for ending in endings])
    place = snapshot / inside
    files = find_files(place, endings=endings) if place.is_dir() else []
    about = [snapshot / name for name in ABOUT]
    if not (found := [file for file in files if file not in about]):
        raise DataError(
            f"hf = {name!r}: no file of the data set ends in one of {told(endings)}",
            hint="see its files at "
            f"https://huggingface.co/datasets/{repository}/tree/{revision or 'main'}",
        )
    # The folder is named by the commit.
    note(f"hf = {name!r}: revision {snapshot.name}, {len(found):,} files{_of_the_cache()}")
    return found


def _snapshot(name: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise DataError(
            f"hf = {name!r}: needs the package huggingface_hub, which is not installed",
            hint='pip install "gptkit-text[hub]"',
        ) from error
    try:
        files = _listed(name, revision, patterns)
        folder = Path(
            snapshot_download(
                name,
                repo_type="dataset",
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=[*ABOUT],
            )
        )
        # Where the network fails, the library gives what its cache has.
        if missing := [file for file in files if not (folder / file).exists()]:
            raise ConnectionError(f"{missing[0]} did not come")
    except Exception as error:  # also those of the HTTP library, which changed over the years
        page = f"https://huggingface.co/datasets/{name}"
        place = f"hf = {name!r}"
        explain(error, place, kind="data set", page=page, revision=revision, wrong=DataError)
    return folder


def _listed(name: str, revision: str | None, patterns: list[str]) -> list[str]:
    """The files that have to come; none where the network must not be used."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return []
    info = HfApi().dataset_info(name, revision=revision or "main")
    names = {file.rfilename for file in info.siblings or ()} - {*ABOUT}
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _of_the_cache() -> str:
    from huggingface_hub import constants

    return ", as far as they are in the Hub's cache" if constants.HF_HUB_OFFLINE else ""


def explain(
    error: Exception,
    place: str,
    *,
    kind: str,
    page: str,
    revision: str | None,
    wrong: type[DataError | UsageError],
    here: str = "",
) -> NoReturn:
    """Raise what a user can act on.

    Args:
        error: of the library that fetches from the Hub.
        place: where the name was given.
        kind: of what was asked for, "data set" or "model".
        page: its address.
        revision: which one was asked for.
        wrong: the class of an error that is no failed download.
        here: what is not on this machine, either.

    Raises:
        DataError: as `wrong` says.
        UsageError: as `wrong` says.
        DownloadError: it cannot be downloaded.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, HFValidationError):
        fault, hint = f"not the name of a {kind}", 'write it as "owner/name"'
    elif isinstance(error, GatedRepoError):
        fault = "may be read only by those who accepted its terms"
        hint = f"accept them at {page}, and set HF_TOKEN"
    elif isinstance(error, RepositoryNotFoundError):
        fault = f"{here}no such {kind} on the Hub, or a private one"
        hint = f"check {page}; for a private one, set HF_TOKEN"
    elif isinstance(error, RevisionNotFoundError):
        fault = f"it has no revision {revision!r}"
        hint = f"a branch, a tag or a commit of {page}/commits/main"
    elif constants.HF_HUB_OFFLINE:
        fault = f"{here}not, or not completely, in the Hub's cache, and HF_HUB_OFFLINE is set"
        hint = "unset HF_HUB_OFFLINE, or fetch it once with a network"
    else:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DownloadError(
            f"{place}: cannot be downloaded: {reason[0]}",
            hint="check the network and the disk, and try again; what came is kept",
        ) from error
    raise wrong(f"{place}: {fault}", hint=hint) from error
