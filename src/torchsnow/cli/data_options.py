"""Options that verbs share: the hub, and how images with labels are read."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from torchsnow.cli.output import load_checked
from torchsnow.errors import TorchsnowError

if TYPE_CHECKING:
    from torchsnow.data import LoadedData

HUB = Path("hub")
"""The folder of the hub, where none is named."""
HubFolder = Annotated[Path, typer.Option("--hub", help="Folder of the hub.")]
"""With the default `HUB`."""

PathColumn = Annotated[str, typer.Option("--path-column", help="Column of a CSV with the images; 'path' by default.")]
LabelColumn = Annotated[str, typer.Option("--label-column", help="Column of a CSV with the classes; else 'label'.")]
SplitColumn = Annotated[
    str,
    typer.Option("--split-column", help="Column of a CSV with train, val and test; else found by name or content."),
]
GroupColumn = Annotated[
    str, typer.Option("--group-column", help="Column of a CSV whose values stay in one split; 'group' by default.")
]
GreyRange = Annotated[
    tuple[int, int], typer.Option(help="Values of 16-bit grey images for black and white, as 0 4095 for 12 bits.")
]
DistinctNames = Annotated[
    bool, typer.Option("--distinct-names", help="Names of classes that look alike are different classes.")
]
FollowLinks = Annotated[bool, typer.Option("--follow-links", help="Follow links that leave the data's folder.")]


@dataclass(frozen=True)
class DataOptions:
    """How labelled images are read for one task, see `with_option_groups`."""

    path_column: PathColumn = ""
    label_column: LabelColumn = ""
    split_column: SplitColumn = ""
    group_column: GroupColumn = ""
    follow_links: FollowLinks = False
    distinct_names: DistinctNames = False
    multi_label: Annotated[
        bool,
        typer.Option("--multi-label", help="Images of a CSV have any number of labels: red|round, or 0/1 columns."),
    ] = False

    def load(self, data: str, quiet: bool) -> LoadedData:
        """The images; see `load_checked`."""
        from torchsnow.data import Columns

        columns = Columns(self.path_column, self.label_column, self.split_column, self.group_column)
        how = {"follow_links": self.follow_links, "distinct_names": self.distinct_names}
        return load_checked(data, quiet=quiet, columns=columns, multi_label=self.multi_label, **how)


def with_option_groups(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with every field of a parameter that is a dataclass as an option, in that parameter's place."""
    groups: dict[str, tuple[Any, list[inspect.Parameter]]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb, eval_str=True).parameters.values():
        group, own = parameter.annotation, [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
        if is_dataclass(group):
            hints = get_type_hints(group, include_extras=True)
            own = [
                own[0].replace(name=field.name, default=field.default, annotation=hints[field.name])
                for field in fields(group)
            ]
            groups[parameter.name] = group, own
        parameters += own

    def called(**given: Any) -> None:
        made = {name: group(**{one.name: given.pop(one.name) for one in own}) for name, (group, own) in groups.items()}
        verb(**made, **given)

    called.__doc__ = verb.__doc__
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # by which options are made
    return called


def validate_outside(data: str, folder: Path, option: str) -> None:
    """Raise TorchsnowError for a folder that is to be written and lies in a folder of images, or is one."""
    root = Path(data).expanduser().resolve()
    if root.is_dir() and folder.resolve().is_relative_to(root):
        raise TorchsnowError(
            f"{folder} lies inside the data {data}, where it would be taken for data next time: choose another {option}"
        )
