"""`python -m gptkit`, which is how torchrun starts it."""

from gptkit.cli import main

main()
