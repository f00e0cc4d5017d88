"""The hub: a folder of tasks on one source; one pass, many tasks."""

from torchsnow.hub.folder import SOURCE_FILE, Cleanup
from torchsnow.hub.hub import Hub
from torchsnow.hub.index import Entry
from torchsnow.hub.remote import refuse_writing
from torchsnow.hub.source import is_hub, source_for
from torchsnow.hub.together import not_finite, predict_together
from torchsnow.hub.verify import Problem

__all__ = [
    "SOURCE_FILE",
    "Cleanup",
    "Entry",
    "Hub",
    "Problem",
    "is_hub",
    "not_finite",
    "predict_together",
    "refuse_writing",
    "source_for",
]
