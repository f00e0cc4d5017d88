"""A hub that answers while it changes."""

from torchsnow.live.hub import Answer, LiveHub, LiveTask

__all__ = ["Answer", "LiveHub", "LiveTask"]
