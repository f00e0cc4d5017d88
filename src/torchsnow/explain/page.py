"""The whole picture of some tasks of a hub: what they subscribe to, how that came about, and what it does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from torchsnow.data import LoadedData, read_image
from torchsnow.errors import HubError, TorchsnowError
from torchsnow.explain.gallery import Gallery, make_folder
from torchsnow.explain.overlap import overlap_figure, overlap_of
from torchsnow.explain.sections import Counting, TaskSections
from torchsnow.explain.settling import task_of_run
from torchsnow.explain.subscriptions import TaskSubscription, places, read_subscription
from torchsnow.hub import Hub
from torchsnow.source.features import unique
from torchsnow.task_file import Task
from torchsnow.train import RunFolder


class Visualization:
    """Named tasks of a hub, checked and ready to be drawn.

    `out` is the folder to draw into, made if there is none; `run` the run folder of one of the tasks, `image` a
    picture file to follow through each, `num_channels` how many channels of each task are shown with images.
    `left_out` has a sentence for each other task that would have been compared and cannot be read. Raises a
    TorchsnowError for whatever cannot be used, and for an `out` inside the hub.
    """

    def __init__(
        self, hub: Hub, names: Sequence[str], out: Path, *, run: Path | None, image: Path | None, num_channels: int
    ) -> None:
        if num_channels < 1:
            raise TorchsnowError(f"the number of channels to show is {num_channels}; expected 1 or more")
        if out.resolve().is_relative_to(hub.folder.path.resolve()):
            raise HubError(f"{out} lies inside the hub {hub.folder.path}; choose another folder")
        self.hub, self.out, self.num_channels = hub, out, num_channels
        self.left_out: list[str] = []
        self.tasks = {name: hub.task(name) for name in unique(names)}
        self.image: Image.Image | None = None if image is None else read_image(image)
        self.subscriptions = {name: self._read(task) for name, task in self.tasks.items()}
        self.compared = self._compared()
        self.run = None if run is None else RunFolder(run)
        self.run_task = None
        if self.run is not None:
            self.run_task = task_of_run(self.run, {name: task.delta for name, task in self.tasks.items()})
        make_folder(out)

    def write(self, data: LoadedData | None, device: torch.device, counting: Counting) -> list[Path]:
        """Draw everything and return the files; `data` is where images are looked for.

        The source and the tasks are on `device`. Raises TorchsnowError when the folder cannot be written.
        """
        names = ", ".join(self.tasks)
        gallery = Gallery(f"What {names} {'subscribes' if len(self.tasks) == 1 else 'subscribe'} to")
        gallery.numbers = {"source": str(self.hub.source_info), "tasks": {}}
        for name, task in self.tasks.items():
            gallery.page.heading(f"Task {name}")
            sections = TaskSections(gallery, self.hub.source, task, self.subscriptions[name], device)
            sections.depth()
            if self.run is not None and name == self.run_task:
                sections.settling(self.run)
            if data is not None and self.subscriptions[name]:
                sections.channels(data, self.num_channels, counting)
            if self.image is not None:
                sections.image(self.image)
        self._overlap(gallery)
        return gallery.save(self.out)

    def _read(self, task: Task) -> TaskSubscription:
        return read_subscription(self.hub.source, task.name, task.delta)

    def _compared(self) -> dict[str, TaskSubscription]:
        """The named tasks; for a single one all of the hub. Tasks that subscribe to nothing have nothing to compare."""
        found = dict(self.subscriptions)
        for name in self.hub.names() if len(self.tasks) == 1 else ():
            try:
                found[name] = found.get(name) or self._read(self.hub.task(name))
            except HubError as error:
                self.left_out.append(str(error))
        return {name: found[name] for name in sorted(found) if found[name]}

    def _overlap(self, gallery: Gallery) -> None:
        gallery.page.heading("Overlap between tasks")
        gallery.page.paragraph(
            "The Jaccard index counts the channels that two tasks share against those that either has. Tasks that "
            "choose at random would share some too: compare with the matrix beside it."
        )
        gallery.numbers["overlap"] = {}
        for part in ("layers", "head"):
            parts = {name: getattr(own, part) for name, own in self.compared.items() if getattr(own, part)}
            if len(parts) < 2:
                gallery.page.paragraph(f"No two tasks to compare have a subscription of their {part}.")
                continue
            overlap = overlap_of(parts, places(self.hub.source))
            gallery.numbers["overlap"][part] = overlap.to_dict()
            what = {"layers": "the layers", "head": "the heads"}[part]
            text = f"Jaccard indices of what {what} of tasks read, observed and by chance"
            gallery.picture(f"overlap-{part}.png", overlap_figure(overlap, what), text, text)
