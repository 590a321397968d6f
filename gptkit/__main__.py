"""The command `gptkit`, also `python -m gptkit`."""

from gptkit.cli import process


def main() -> None:
    """The entry point of the command `gptkit`."""
    process.run(_command)


def _command() -> None:
    from gptkit.cli.app import app  # takes a tenth of a second, in which Ctrl-C may come

    app()


if __name__ == "__main__":
    main()
