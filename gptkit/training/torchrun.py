"""The environment variables that torchrun sets for its processes. Imports no torch."""

import os


def job() -> str | None:
    """The id of this call of torchrun; None if torchrun did not start this process."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def rank() -> int:
    """This process's number among those that train together; 0 without torchrun."""
    return int(os.environ["RANK"]) if job() is not None else 0
