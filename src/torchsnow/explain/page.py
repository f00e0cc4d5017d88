"""The whole picture of some tasks of a hub: what they subscribe to, how that came about, and what it does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image

from torchsnow.data import ImageSet, LoadedData, eval_transform, prepare, read_image
from torchsnow.delta import Delta
from torchsnow.errors import HubError, TorchsnowError, TrainingError
from torchsnow.explain.attribution import Attribution, attribute
from torchsnow.explain.channels import Progress, feature_maps, maximise, spread_channels, to_dicts, top_images
from torchsnow.explain.figures import attribution_figure, channels_figure, depth_figure, maps_figure, overlap_figure
from torchsnow.explain.subscriptions import TaskSubscription, overlap_of, places, read_subscription
from torchsnow.hub import Hub
from torchsnow.io.files import clear_os_errors, make_folder, write_atomically
from torchsnow.methods.snow import chosen_channels
from torchsnow.pages import Page
from torchsnow.plots import png_bytes, selection_figure
from torchsnow.source import Source
from torchsnow.source.features import unique
from torchsnow.task_file import Task
from torchsnow.train import RunFolder

PAGE, NUMBERS = "index.html", "subscription.json"
Counting = Callable[[str], AbstractContextManager[Progress]]
"""Given what is counted, a context with a function that is told (done, total)."""
_MOST_SHARES = 12  # channels in the table of an attribution


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
                sections.selection(self.run)
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
            "choose at random would share some too: compare with the matrix next to it."
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


class Gallery:
    """A page, the PNG files of its pictures, and JSON numbers next to it."""

    def __init__(self, title: str) -> None:
        self.page = Page(title)
        self.numbers: dict[str, Any] = {}
        self._pictures: dict[str, bytes] = {}

    def picture(self, name: str, figure: Figure, text: str, caption: str) -> None:
        """Add a figure to the page and, as the file `name`, to the folder; `text` is for who does not see it."""
        self._pictures[name] = png_bytes(figure)
        self.page.picture(self._pictures[name], text, caption)

    def save(self, folder: Path) -> list[Path]:
        """Write everything into an existing folder, file by file atomically, the page last.

        Other files of the folder are left alone. Raises TorchsnowError when the disk refuses.
        """
        for name, content in self._pictures.items():
            write_atomically(folder / name, content)
        write_atomically(folder / NUMBERS, json.dumps(self.numbers, indent=1, allow_nan=False) + "\n")
        self.page.save(folder / PAGE)
        return [folder / name for name in (*self._pictures, NUMBERS, PAGE)]


class TaskSections:
    """Adds pictures, words and numbers of one task to a gallery; the source and the delta are on `device`."""

    def __init__(
        self, gallery: Gallery, source: Source, task: Task, subscription: TaskSubscription, device: torch.device
    ) -> None:
        self.gallery, self.page, self.device = gallery, gallery.page, device
        self.task, self.subscription = task, subscription
        self.source, self.config, self.order = source, source.input_config, places(source)
        self.numbers = gallery.numbers["tasks"][task.name] = subscription.to_dict()

    def depth(self) -> None:
        """How much is read at which tap, and how strongly."""
        if not self.subscription:
            self.page.paragraph(
                "This task subscribes to no channel of the source: neither its layers nor its head read any tap."
            )
            return
        for what, parts in (("layers", self.subscription.layers), ("head", self.subscription.head)):
            if parts:
                read, of = sum(len(part.index) for part in parts), sum(part.num_chs for part in parts)
                self.page.paragraph(f"Its {what}: {read} of {of} channels at {len(parts)} places of the source.")
            else:
                self.page.paragraph(f"Its {what} subscribe{'s' * (what == 'head')} to nothing of the source.")
        self._picture(
            "depth",
            depth_figure(self.subscription, self.order),
            "Weights and strength of the subscription, tap by tap",
            "Strength: over the subscribed channels of a tap, the sum of the weight |w| times the norm of all the "
            "weights that read the channel; of a task with a grid, whose w only evens out how much channels vary, the "
            "sum of the norms.",
        )

    def selection(self, run: RunFolder) -> None:
        """How the choice came about, from the task's own run."""
        if not run.selection.exists():
            self.page.paragraph("The choice of channels was made before the first step, and stayed as it was.")
            return
        self._picture(
            "settling",
            selection_figure(run),
            "How the choice of channels settled, epoch by epoch",
            f"How the choice settled during training ({run.path.name}): on the left how many channels were ever tried, "
            "on the right how many of the chosen ones another draw of the noise would replace.",
        )

    def channels(self, data: LoadedData, number: int, counting: Counting) -> None:
        """`number` of the strongest channels, the images that they answer to most, and pictures made for them."""
        channels = spread_channels(self.subscription.main, number)
        framing = self.task.framing
        images = ImageSet(
            data.examples,
            data.classes,
            eval_transform(self.config, framing),
            prepare(self.config, framing),
            cache_bytes=0,
        )
        with counting(f"{self.task.name}: finding top images") as progress:
            tops = top_images(self.source, images, channels, self.device, progress)
        with counting(f"{self.task.name}: making pictures of channels") as progress:
            made = maximise(self.source, channels, framing.image_size, progress)
        self.numbers["channels"] = to_dicts(
            channels, tops, lambda place: data.relative_path(images.examples[place]).encode(errors="replace").decode()
        )
        self._picture(
            "channels",
            channels_figure(self.task.name, channels, made, tops, images, self.config),
            "The strongest channels, a picture made for each, and the images on which it is largest",
            "The strongest subscribed channels, spread over depth: at the left a picture that was made to drive the "
            f"channel, next to it the images of {data.name} on which its average is largest, with that average.",
        )

    def image(self, picture: Image.Image) -> None:
        """One image through the task: feature maps, and where the logit comes from."""
        pixels = eval_transform(self.config, self.task.framing)(picture)[None].to(self.device)
        maps = feature_maps(self.source, self.subscription.main, pixels)
        if maps:
            self._picture(
                "maps",
                maps_figure(self.task.name, maps, pixels, self.config),
                "Feature maps of the image",
                "The strongest subscribed channels of some taps on the given image, each on its own scale of grey.",
            )
        attribution = attribute(self.source, self.task.delta, pixels, self.task.thresholds)
        class_name = self.task.classes[attribution.label]
        self.numbers["attribution"] = {"class": class_name, **attribution.to_dict()}
        self._picture(
            "attribution",
            attribution_figure(self.task.name, class_name, attribution, self.order),
            "Shares of the source and of the delta in the logit, tap by tap",
            "Where the logit of the predicted class comes from. Left: gradient times value of what each layer reads, "
            "a first-order estimate; depths are views of the same logit and do not add up. Right: the parts of the "
            "head, which add up to the logit.",
        )
        self.page.table(
            ["read by", "tap", "channel", "share in the logit"],
            _largest_shares(attribution),
            "The source's channels with the largest shares",
        )

    def _picture(self, name: str, figure: Figure, text: str, caption: str) -> None:
        self.gallery.picture(f"{self.task.name}-{name}.png", figure, f"{text}, task {self.task.name}", caption)


def _largest_shares(attribution: Attribution) -> list[tuple[str, str, int, str]]:
    """(part, tap, channel, share), the largest in size first."""
    shares = [("layer", part.tap, part.index, part.source) for part in attribution.taps]
    shares += [("head", tap, index, values) for tap, (index, values) in attribution.head.parts.items()]
    flat = [
        (float(value), reader, tap, int(channel))
        for reader, tap, index, values in shares
        for channel, value in zip(index, values, strict=True)
    ]
    largest = sorted(flat, key=lambda row: -abs(row[0]))[:_MOST_SHARES]
    return [(reader, tap, channel, f"{value:+.4f}") for value, reader, tap, channel in largest]


def task_of_run(run: RunFolder, deltas: Mapping[str, Delta]) -> str:
    """The name of the task that a run gave: the one whose channels and weights are those that the run ended with.

    Raises TrainingError for a folder without a finished run of a method that chooses channels, and when the run
    is that of another task.
    """
    chosen = _subscription(run)
    for name, delta in deltas.items():
        if chosen_channels(delta) == chosen:
            return name
    names = " or ".join(repr(name) for name in deltas)
    raise TrainingError(
        f"the run {run.path} is not that of task {names}: it ended with another subscription; "
        "give the folder that `train --out` wrote for this task"
    )


def _subscription(run: RunFolder) -> Any:
    with clear_os_errors("look at the run folder", run.path, TrainingError):
        known, finished = run.args.exists(), run.subscription.exists()
    if not known:
        raise TrainingError(f"{run.path} holds no run: it has no {run.args.name}; give what was `train --out`")
    if not finished:
        raise TrainingError(
            f"the run {run.path} has no {run.subscription.name}: it is not finished, or its method chooses no channels"
        )
    try:
        with clear_os_errors("read", run.subscription, TrainingError):
            return json.loads(run.subscription.read_text(encoding="utf-8", errors="replace"))
    except json.JSONDecodeError as error:
        raise TrainingError(
            f"{run.subscription} is damaged ({error}); resuming the run (--resume) writes it again"
        ) from error
