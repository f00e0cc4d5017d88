"""What progress bars have in common."""

from __future__ import annotations

from rich.progress import Task, TimeRemainingColumn
from rich.text import Text


class TimeLeft(TimeRemainingColumn):
    """The time that remains, and nothing as long as nobody can know it, where Rich has dashes."""

    def render(self, task: Task) -> Text:
        return Text("") if task.time_remaining is None else super().render(task)
