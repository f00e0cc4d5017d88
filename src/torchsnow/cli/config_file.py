"""Options of a verb from a YAML file."""

from __future__ import annotations

from pathlib import Path

import typer


def take_config(ctx: typer.Context, file: Path | None) -> Path | None:
    """For an option that is read first: the file's options become what those have that are given nowhere else.

    Raises ServingError for a file that cannot be used, and an option that there is not.
    """
    if file is None:
        return None
    from torchsnow.errors import ServingError
    from torchsnow.io.yaml_file import read_yaml

    given = read_yaml(file, ServingError, "the configuration")
    if not isinstance(given, dict):
        raise ServingError(f"{file} holds no options; expected lines like 'batch-size: 8'")
    options = {str(param.name): param for param in ctx.command.params if param.name not in ("config", "help")}
    values = {}
    for key, value in given.items():
        name = str(key).replace("-", "_")
        if name not in options:
            known = ", ".join(sorted(other.replace("_", "-") for other in options))
            raise ServingError(f"{file} has {str(key)[:40]!r}, which is no option; expected some of {known}")
        several = options[name].multiple
        items = value if several and isinstance(value, list) else [value]
        if any(isinstance(item, list | dict) for item in items):
            raise ServingError(f"{file} has a list or several names under {key!r}; expected one value")
        if value is not None:
            values[name] = items if several else value
    ctx.default_map = values
    return file
