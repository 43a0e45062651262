"""`python -m sightline` is the `sightline` command."""

from .cli import main

main()
