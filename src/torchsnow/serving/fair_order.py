"""Who is next in a queue over many tasks."""

from __future__ import annotations

from collections.abc import Sequence, Set


class FairOrder:
    """Places in a queue that give every task the same share, however many images ask for it.

    A task's next image gets the place after its own last one, or the present one if it has none waiting; an image for
    several tasks gets the latest of theirs. So images of a task that is asked for rarely overtake those of a hot one.
    """

    def __init__(self) -> None:
        self._present = 0.0
        self._next: dict[str, float] = {}  # by task; only places that lie ahead

    def place(self, names: Sequence[str]) -> float:
        """The place of a new image for these tasks."""
        places = [max(self._present, self._next.get(name, 0.0)) for name in names]
        self._next.update({name: place + 1 for name, place in zip(names, places, strict=True)})
        return max(places, default=self._present)

    def soonest(self, names: Set[str]) -> float:
        """The place that a new image would get that is for whichever of these tasks (at least one) gets the first."""
        if not names <= self._next.keys():
            return self._present
        return max(self._present, min(self._next[name] for name in names))

    def forget(self, names: Sequence[str]) -> None:
        """The last image for these tasks has left without being served."""
        for name in names:
            if name in self._next:
                self._next[name] -= 1

    def reached(self, place: float) -> None:
        """An image is served from this place."""
        self._present = max(self._present, place)
        self._next = {name: place for name, place in self._next.items() if place > self._present}
