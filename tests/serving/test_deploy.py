"""The examples of a deployment can be read, and call the command line as it is."""

from __future__ import annotations

import configparser
import json
import shlex
from pathlib import Path
from typing import Any

import typer
import yaml

from torchsnow.cli import app

DEPLOY = Path(__file__).parents[2] / "deploy"


def parse(words: list[str]) -> Any:
    """Raises unless the words after `torchsnow` are right."""
    command: Any = typer.main.get_command(app)
    verb, *rest = words
    return command.commands[verb].make_context(verb, rest).params


def entrypoint() -> list[str]:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = dict(line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#"))
    assert {"FROM", "COPY", "RUN", "USER", "ENTRYPOINT", "HEALTHCHECK"} <= set(lines)
    assert lines["USER"] == "10001"
    words: list[str] = json.loads(lines["ENTRYPOINT"])
    return words


def test_the_dockerfile_starts_a_server() -> None:
    program, *words = entrypoint()
    assert program == "torchsnow"
    assert parse(words)["hub"] == Path("/hub")


def test_the_unit_starts_a_server() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "torchsnow.service")
    assert {"Unit", "Service", "Install"} == set(unit.sections())
    program, *words = shlex.split(unit["Service"]["ExecStart"])
    assert Path(program).name == "torchsnow"
    given = parse(words)
    assert given["host"] == "127.0.0.1"
    assert int(unit["Service"]["TimeoutStopSec"]) > given["deadline_s"]


def test_the_manifest_fits_the_image() -> None:
    deployment, service, claim = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    assert (deployment["kind"], service["kind"], claim["kind"]) == ("Deployment", "Service", "PersistentVolumeClaim")
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert parse([*entrypoint()[1:], *container["args"]])["allow_host"] == ["torchsnow"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert pod["spec"]["terminationGracePeriodSeconds"] > 10 + 5
    assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in pod["spec"]["volumes"]}
    claims = [
        volume["persistentVolumeClaim"]["claimName"] for volume in pod["spec"]["volumes"] if "emptyDir" not in volume
    ]
    assert claims == [claim["metadata"]["name"]]
