"""Hubs for other people and machines: in repositories of the Hugging Face Hub, and in object stores."""

from torchsnow.sharing.repository import Pulled, Pushed, pull, push
from torchsnow.sharing.store import push_to_store

__all__ = ["Pulled", "Pushed", "pull", "push", "push_to_store"]
