"""Many tasks and their source as one program, and what runs it."""

from torchsnow.engines.backends import BACKENDS, Runner, check_backend
from torchsnow.engines.engine import Engine, Program, Work

__all__ = ["BACKENDS", "Engine", "Program", "Runner", "Work", "check_backend"]
