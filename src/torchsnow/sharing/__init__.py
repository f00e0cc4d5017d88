"""Hubs for other people: repositories of the Hugging Face Hub."""

from torchsnow.sharing.repository import Pulled, Pushed, pull, push

__all__ = ["Pulled", "Pushed", "pull", "push"]
