"""The hub: a folder of tasks on one source; one pass, many tasks."""

from torchsnow.hub.folder import SOURCE_FILE
from torchsnow.hub.hub import Hub, Problem
from torchsnow.hub.index import Entry

__all__ = ["SOURCE_FILE", "Entry", "Hub", "Problem"]
