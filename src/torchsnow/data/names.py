"""How splits, classes, columns and augmentations are named, and what lies among images without being any."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from decimal import Decimal

from torchsnow.errors import DataError

ALL = "all"
AUGMENTATIONS = ("none", "flip", "light", "strong")
# Each word with the split that it means; of two, the second where another word means the first.
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "tr", "trainval"), ("train",)),
    **dict.fromkeys(("val", "valid", "validation", "validate", "validating"), ("val",)),
    **dict.fromkeys(("dev", "devel", "development"), ("val",)),
    **dict.fromkeys(("eval", "evaluation", "evaluate"), ("val", "test")),
    **dict.fromkeys(("test", "testing", "tst", "te"), ("test",)),
    **dict.fromkeys(("holdout", "heldout"), ("test", "val")),
}
_FILLERS = (
    "set|sets|data|dataset|datasets|images?|imgs?|photos?|pictures?|files?|folder|samples?|split|splits|subset|part"
)
_FILLER = re.compile(f"({_FILLERS}|partition|fold|cropped|resized|[0-9]+)")
_GLUED = re.compile(f"({'|'.join(sorted(_SPLIT_WORDS, key=len, reverse=True))})(?:{_FILLERS})")
NO_LABEL = frozenset({"nan", "-nan", "NaN", "NAN", "null", "NULL", "<NA>", "#N/A", "None", "NA", "N/A", "n/a"})
"""What programs write for a cell that is empty; some of it may be meant as the name of a class."""
# Written by operating systems, network stores, photo programs and archivers, never by hand.
_JUNK = frozenset(
    {
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "#recycle", "#snapshot", "~snapshot"),
        *("$recycle.bin", "recycler", "recycled", "system volume information", "lost+found", "lost.dir"),
        *(
            "thumbnails",
            "thumbnail",
            "thumbs",
            "@__thumb",
            "thumbs.db",
            "thumbs.db:encryptable",
            "ehthumbs.db",
            "desktop.ini",
            "folder.htt",
        ),
        *("__macosx", "icon\r", "network trash folder", "temporary items", "picasa.ini", "picasaoriginals"),
        *("__pycache__", "_gsdata_", "_vti_cnf", "@sharesnap", "zbthumbnail.info", "albumartsmall.jpg"),
    }
)
_OF_DISK_CHECKS = re.compile(r"found\.[0-9]{3}")
# What spreadsheets and phones write for - and ', and letters that only choose how the one before them is drawn.
_TYPESET = str.maketrans({
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
    **dict.fromkeys("\u2018\u2019\u02bc", "'"),
    **dict.fromkeys("\u201c\u201d", '"'),
    **dict.fromkeys("\ufe0e\ufe0f", ""),
})  # fmt: skip


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden, or was put there by a system and not by a person."""
    small = name.casefold()
    return small.startswith((".", "~$", "synophoto_thumb_")) or small in _JUNK or bool(_OF_DISK_CHECKS.fullmatch(small))


def splits_named(names: Sequence[str]) -> dict[str, str]:
    """Of the names, those that mean a split, with "train", "val" or "test".

    They may be in any case, have numbers and words such as "set" and "images" around them, or all have one affix.
    """
    words, rests = {}, {}
    for name in names:
        tokens = [_GLUED.sub(r"\1", token) if _GLUED.fullmatch(token) else token for token in _tokens(name)]
        meant = [token for token in tokens if token in _SPLIT_WORDS]
        if len(meant) == 1:
            words[name] = meant[0]
            rests[name] = [token for token in tokens if token not in meant and not _FILLER.fullmatch(token)]
    have_one_affix = len(words) > 1 and all(rest == rests[next(iter(words))] for rest in rests.values())
    words = {name: word for name, word in words.items() if have_one_affix or not rests[name]}
    taken = {_SPLIT_WORDS[word][0] for word in words.values() if len(_SPLIT_WORDS[word]) == 1}
    return {name: _meaning(word, taken) for name, word in words.items()}


def _meaning(word: str, taken: Collection[str]) -> str:
    meanings = _SPLIT_WORDS[word]
    return next((one for one in meanings if one not in taken), meanings[0])


def _tokens(name: str) -> list[str]:
    """Its words in small letters: of "TrainSet_2017", train, set and 2017."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    for pattern, word in (
        (r"h[eo]ld[ _-]?out", "holdout"),
        (r"train(ing)?[ _+-]?val(id|idation)?(?![a-z])", "trainval"),
    ):
        apart = re.sub(pattern, word, apart, flags=re.IGNORECASE)
    return re.findall(r"[^\W\d_]+|\d+", apart.casefold())


def is_no_label(cell: str) -> bool:
    """Whether a cell holds no name of a class: nothing, or what programs write for nothing and people never do."""
    return cell.strip().casefold() in ("", "nan", "-nan", "null", "<na>", "#n/a")


def as_text(name: str) -> str:
    """A folder's name as text that can be written anywhere: composed, and what is not UTF-8 as escapes like \\xe9."""
    try:
        written = os.fsencode(name)
    except UnicodeEncodeError:  # by a locale that lacks its letters: it is text already, as from a table or a task
        written = name.encode("utf-8", "surrogateescape")
    return unicodedata.normalize("NFC", written.decode("utf-8", "backslashreplace")).strip()


def likeness(name: str) -> str:
    """The same for names that a reader takes for one.

    Case, blanks, invisible characters, kinds of dashes and quotes, and 1 and 1.0 make no difference. A single letter
    is a class of its own in either case.
    """
    text = unicodedata.normalize("NFC", name).translate(_TYPESET).strip()
    if re.fullmatch(r"[+-]?\d+([.,]\d*)?", text):
        return str(Decimal(text.replace(",", ".").rstrip(".")).normalize())
    if len(text) == 1:
        return text
    visible = "".join(
        letter
        for letter in unicodedata.normalize("NFKC", text)
        if letter.isspace() or unicodedata.category(letter) not in ("Cf", "Cc")
    )
    return " ".join(re.split(r"[\s_-]+", visible.lower())).strip()


def validate_distinct(names: Iterable[str], what: str, distinct: bool) -> None:
    """Raise DataError when two of the names, as they were written, can be taken for one, or, if they were said to be
    `distinct`, are one as text."""
    seen: dict[str, str] = {}
    for name in sorted(names):
        other = seen.setdefault(as_text(name) if distinct else likeness(name), name)
        if other != name:
            one_text = as_text(name) == as_text(other)
            advice = "give it one name" + ("" if one_text else ", or, if they are two, say so with --distinct-names")
            raise DataError(f"{what} has the names {other!a} and {name!a}, which look like one class: {advice}")


def natural_sorted(names: Iterable[str]) -> list[str]:
    """Sorted as people do: img2 before img10, and capitals next to small letters."""

    def key(name: str) -> tuple[list[str | int], str]:
        # Odd parts are runs of digits, so equal positions always compare equal types.
        parts = re.split(r"([0-9]+)", name.casefold())
        return [int(part) if place % 2 else part for place, part in enumerate(parts)], name

    return sorted(names, key=key)


def first_few(items: Sequence[str], count: int = 3, between: str = "; ") -> str:
    """The first items as one text, and how many more there are."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return between.join(items[:count]) + more


def counted(count: int, one: str, many: str = "") -> str:
    """`1 image`, `2 images`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
