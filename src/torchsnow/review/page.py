"""A review as one HTML page."""

from __future__ import annotations

import io
from collections.abc import Callable

import torch
from PIL import Image as Pillow
from torch import Tensor

from torchsnow.data import AUGMENTATIONS, eval_transform, read_image, train_transform
from torchsnow.errors import DeltaError
from torchsnow.heat import as_picture, drawn, visible
from torchsnow.hub import Hub
from torchsnow.pages import Page, Thumbnail
from torchsnow.review.findings import Image, Review, num_classes, num_splits
from torchsnow.source import InputConfig
from torchsnow.task_file import Task

MOST = 48  # images of a section, so that the page stays a file of a few MB
_SIDE = 192  # pixels
_MOST_IN_TRAINING, _VIEWS = 6, 3  # images of which augmented ones are shown, and how many of each
_MOST_ROWS = 100  # classes up to which each has a row
_SUSPECTS = "Likely mislabelled"
_ABOUT_HEAT = (
    "Next to each image, as the task sees it: what speaks for the class that it is taken for is red, what speaks "
    "against it blue."
)


def review_page(review: Review, hub: Hub, progress: Callable[[int, int], None] = lambda done, total: None) -> Page:
    """All findings with small pictures. `progress` is called with (images done, images in all)."""
    page = Page(f"{review.data}, reviewed with the task {review.task}")
    page.paragraph(
        f"{review.num_images} images. moves.csv next to this page lists what is shown here: fill in or empty its "
        "column move_to, and the command torchsnow relabel moves these images to other class folders."
    )
    sections = _sections(review)
    sizes = [min(len(items), MOST) for *_, items in sections]
    pictures = _Pictures(hub, review.task, sum(sizes) + min(sum(map(len, review.duplicates)), MOST), progress)
    for title, about, items in sections:
        page.heading(f"{title}: {len(items)}")
        page.paragraph(about)
        if len(items) > MOST:
            page.paragraph(f"The first {MOST} are shown.")
        is_told = title != _SUSPECTS  # those are found without asking the task
        thumbnails = [pictures.thumbnail(image, text, with_heat=is_told) for image, text in items[:MOST]]
        if is_told and items:
            page.paragraph(pictures.about_heat)
        page.gallery(thumbnails)
    _duplicates(page, review, pictures)
    _as_in_training(page, review, hub)
    _classes(page, review)
    return page


def _sections(review: Review) -> list[tuple[str, str, list[tuple[Image, str]]]]:
    """Title, explanation, and the images with a line on each."""
    return [
        (
            _SUSPECTS,
            "Logistic regression on the source's features, fitted without the image and its near-duplicates, is as "
            "sure of another class as it is of that class's own images (confident learning). Those of which the "
            "task says the same come with a move in moves.csv: keep it where you agree.",
            [
                (suspect.image, f"labelled {suspect.image.label}, likelier {suspect.likelier}")
                for suspect in review.mislabelled
            ],
        ),
        (
            "Confidently wrong",
            "The task is surest where it contradicts the label. Images of the training split are rarely among them, "
            "for the task has learned their labels.",
            [(image, f"labelled {image.label}, taken for {_share(image)}") for image in review.wrong],
        ),
        (
            "Most doubtful",
            "The fifth of all images of which the task's two likeliest classes are nearest to each other. More images "
            "like those of which it is unsure teach it most.",
            [(image, f"labelled {image.label}, taken for {_share(image)}") for image in review.doubtful],
        ),
    ]


def _duplicates(page: Page, review: Review, pictures: _Pictures) -> None:
    across = sum(num_splits(group) > 1 for group in review.duplicates)
    contradicting = sum(num_classes(group) > 1 for group in review.duplicates)
    page.heading(f"Near-duplicates: {len(review.duplicates)} groups")
    if not review.duplicates:
        return
    page.paragraph(
        f"In several splits: {across}. Results on those say nothing of new images, so keep each group in one split. "
        f"With several labels: {contradicting}. One of the labels is wrong there."
    )
    shown = 0
    for number, group in enumerate(review.duplicates, 1):
        shown += len(group)
        if shown > MOST:
            page.paragraph(f"{len(review.duplicates) - number + 1} further groups are in moves.csv.")
            break
        page.heading(f"Group {number}", 3)
        page.gallery([pictures.thumbnail(image, image.label) for image in group])


def _as_in_training(page: Page, review: Review, hub: Hub) -> None:
    task = hub.task(review.task)
    augmentation = task.training.get("augmentation")
    if augmentation not in AUGMENTATIONS:  # a task that was made in Python need not say
        return
    in_order = sorted(review.images, key=lambda image: image.path)
    trained_on = [image for image in in_order if image.split == "train"] or in_order
    sample = trained_on[:: -(-len(trained_on) // _MOST_IN_TRAINING)]
    page.heading("As training sees them")
    page.paragraph(
        f"Some images as the task sees them, cut out at {task.image_size} pixels, and next to each what "
        f"--augmentation {augmentation} makes of it. Where that loses or changes what tells the classes apart, train "
        "with another --augmentation, --crop-mode or --image-size."
    )
    config = hub.source.input_config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        page.gallery([_in_training(image, task, config, augmentation) for image in sample])


def _in_training(image: Image, task: Task, config: InputConfig, augmentation: str) -> Thumbnail:
    picture = read_image(image.file)
    plain: Tensor = eval_transform(config, task.framing)(picture)
    views = [plain]
    if augmentation == "flip":
        views.append(plain.flip(-1))
    elif augmentation != "none":
        augment = train_transform(config, task.framing, augmentation)
        views += [augment(picture) for _ in range(_VIEWS)]
    return Thumbnail(tuple(jpeg_of(as_picture(visible(view, config))) for view in views), image.label, (image.path,))


def _classes(page: Page, review: Review) -> None:
    page.heading("Images by class")
    if review.rare:
        page.paragraph(f"Rare, so that their figures are mostly chance: {', '.join(review.rare[:_MOST_ROWS])}.")
    splits = list(dict.fromkeys(split for counts in review.counts.values() for split in counts))
    fewest_first = sorted(review.counts.items(), key=lambda item: sum(item[1].values()))
    rows = [[label, *(counts.get(split, 0) for split in splits)] for label, counts in fewest_first[:_MOST_ROWS]]
    page.table(["class", *splits], rows, "the rarest classes first")


class _Pictures:
    """Makes thumbnails, and tells how many of how many are done."""

    def __init__(self, hub: Hub, task: str, total: int, progress: Callable[[int, int], None]) -> None:
        self._source, self._task = hub.source, hub.task(task)
        self._total, self._progress, self._done = total, progress, 0
        self.about_heat = _ABOUT_HEAT

    def thumbnail(self, image: Image, title: str, *, with_heat: bool = False) -> Thumbnail:
        """An image, and next to it where the task sees the class that it takes it for, if it can tell."""
        self._done += 1
        self._progress(min(self._done, self._total), self._total)
        picture = read_image(image.file)
        jpegs = [jpeg_of(picture.copy())]
        if with_heat:
            try:
                jpegs.append(jpeg_of(drawn(self._source, self._task, picture, image.taken_for)))
            except DeltaError as error:
                self.about_heat = f"No heat maps: {error}."
        return Thumbnail(tuple(jpegs), title, (image.path, f"split {image.split}"))


def jpeg_of(picture: Pillow.Image) -> bytes:
    """A picture as a small JPEG."""
    content = io.BytesIO()
    picture.thumbnail((_SIDE, _SIDE))
    picture.save(content, "JPEG", quality=80)
    return content.getvalue()


def _share(image: Image) -> str:
    return f"{image.taken_for} ({image.probability:.0%})"
