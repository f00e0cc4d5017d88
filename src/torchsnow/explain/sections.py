"""The sections of a page that show one task."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from matplotlib.figure import Figure
from PIL import Image

from torchsnow.data import ImageSet, LoadedData, eval_transform, prepare
from torchsnow.explain.activations import Progress, channels_figure, spread_channels, to_dicts, top_images
from torchsnow.explain.attribution import Attribution, attribute
from torchsnow.explain.depth import depth_figure
from torchsnow.explain.gallery import Gallery
from torchsnow.explain.image import attribution_figure, feature_maps, maps_figure
from torchsnow.explain.maximise import maximise
from torchsnow.explain.settling import settling_figure
from torchsnow.explain.subscriptions import TaskSubscription, places
from torchsnow.source import Source
from torchsnow.task_file import Task
from torchsnow.train import RunFolder

Counting = Callable[[str], AbstractContextManager[Progress]]
"""Given what is counted, a context with a function that is told (done, total)."""
_MOST_SHARES = 12  # channels in the table of an attribution


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

    def settling(self, run: RunFolder) -> None:
        """How the choice came about, from the task's own run."""
        if not run.selection.exists():
            self.page.paragraph("The choice of channels was made before the first step, and stayed as it was.")
            return
        self._picture(
            "settling",
            settling_figure(run),
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
        with counting(f"{self.task.name}: looking at the images") as progress:
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
            f"channel, beside it the images of {data.name} on which its average is largest, with that average.",
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
        attribution = attribute(self.source, self.task.delta, pixels)
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
