"""What methods without channel pooling answer to the parts of the contract that are about choosing."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class PlainMethod:
    """Nothing is chosen, nothing changes along the way, and what was trained is what is kept."""

    def set_progress(self, fraction: float) -> None:
        """Nothing changes along the way."""

    def record(self) -> list[dict[str, Any]]:
        """Nothing is chosen."""
        return []

    def subscription(self) -> dict[str, Any]:
        """No channel pooling."""
        return {}

    def trainable_state(self) -> dict[str, Tensor]:
        """Everything that training changes, by name."""
        raise NotImplementedError

    def shipped_state(self) -> dict[str, Tensor]:
        """What was trained."""
        return self.trainable_state()
