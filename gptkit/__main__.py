"""The command `gptkit`, also `python -m gptkit`."""

import sys


def main() -> None:
    """The entry point of the command `gptkit`."""
    try:
        from gptkit.cli import process  # here, so that Ctrl-C ends in a word from the start
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
        sys.exit(130)
    process.run(_command)


def _command() -> None:
    from gptkit.cli.app import app  # takes a tenth of a second

    app()


if __name__ == "__main__":
    main()
