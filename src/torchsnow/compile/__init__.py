"""Many tasks and their source as one program, and what runs it."""

from torchsnow.compile.backends import BACKENDS, Runner, check_backend
from torchsnow.compile.engine import Engine, Work
from torchsnow.compile.program import Program

__all__ = ["BACKENDS", "Engine", "Program", "Runner", "Work", "check_backend"]
