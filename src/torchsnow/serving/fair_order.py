"""Who is next in a queue over many tasks."""

from __future__ import annotations

from collections.abc import Sequence


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
        place = self.ahead(names)
        self._next.update({name: max(self._present, self._next.get(name, 0.0)) + 1 for name in names})
        return place

    def ahead(self, names: Sequence[str]) -> float:
        """The place that a new image for these tasks would get."""
        return max([self._present, *(self._next.get(name, 0.0) for name in names)])

    def forget(self, names: Sequence[str]) -> None:
        """The last image for these tasks has left without being served."""
        for name in names:
            if name in self._next:
                self._next[name] -= 1

    def reached(self, place: float) -> None:
        """An image is served from this place."""
        self._present = max(self._present, place)
        self._next = {name: place for name, place in self._next.items() if place > self._present}
