"""Many tasks and their source as one program, and what runs it."""

from torchsnow.engines.backends import BACKENDS, Runner, validate_backend
from torchsnow.engines.engine import DeltaRequest, Engine, Output, Program

__all__ = ["BACKENDS", "DeltaRequest", "Engine", "Output", "Program", "Runner", "validate_backend"]
