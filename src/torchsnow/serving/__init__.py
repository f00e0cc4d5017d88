"""A hub as a service over HTTP. The server needs the extra `serve`; the client needs nothing."""

from torchsnow.serving.client import Client

__all__ = ["Client"]
