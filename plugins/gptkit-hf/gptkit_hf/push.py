"""Upload an exported folder to the Hugging Face Hub."""

from pathlib import Path

from gptkit.plugin import RunError, UsageError, note
from gptkit_hf.hub import is_name

EARLIER = ("*.safetensors", "*.safetensors.index.json", "tokenizer*", "*.jinja", "onnx/*")
"""What an earlier upload may have left, and what this one has not replaced."""
HINT = (
    "the folder stays. Set HF_TOKEN to a token that may write, and check the network; then export "
    "again"
)


def check_name(name: str) -> None:
    """Refuse what is no name of a model, or a missing package, before anything is written.

    Raises:
        UsageError: says what to do.
    """
    if not is_name(name) or "@" in name:
        raise UsageError(f"push = {name!r}: not the name of a model", hint='push = "OWNER/NAME"')
    try:
        import huggingface_hub  # noqa: F401 - whether it is there
    except ImportError as error:
        raise UsageError(
            "push: needs the package huggingface_hub, which is not installed",
            hint='pip install "gptkit-hf[hub]"',
        ) from error


def push(folder: Path, name: str, *, private: bool, dry_run: bool) -> None:
    """Upload all files of a folder as one commit; a model that does not exist is made.

    Args:
        folder: with the files, whose model is proven.
        name: "owner/name".
        private: whether a new model can be read by its owner alone.
        dry_run: only say what would be uploaded.

    Raises:
        RunError: it cannot be uploaded.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if dry_run:
        for file in files:
            note(f"{file.relative_to(folder).as_posix()}: {file.stat().st_size:,} bytes")
        note(f"dry run: {len(files)} files would be uploaded to {name}")
        return
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="Upload a model of gptkit",
            delete_patterns=[*EARLIER],
        )
    except Exception as error:  # also those of the HTTP library, which changed over the years
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RunError(f"{name}: cannot be uploaded: {reason[0]}", hint=HINT) from error
    note(f"uploaded {len(files)} files: {commit.commit_url}")
