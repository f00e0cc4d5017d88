"""Many tasks and their source as one program, and what runs it."""

from torchsnow.compile.backends import BACKENDS, Runner, check_backend
from torchsnow.compile.program import Program

__all__ = ["BACKENDS", "Program", "Runner", "check_backend"]
