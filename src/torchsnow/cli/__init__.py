"""The command line: `torchsnow VERB`. Exit code 0 on success, 2 on bad input, 1 on our failure."""

from torchsnow.cli.app import app, main

__all__ = ["app", "main"]
