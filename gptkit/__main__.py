"""`python -m gptkit`, which is how torchrun starts it."""

from gptkit.cli.app import main

main()
