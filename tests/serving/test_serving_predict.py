"""What a server answers: POST /predict, GET /tasks, /metrics, the page and the documents."""

from __future__ import annotations

import base64
import io
import json
import threading

import pytest
from running_server import BEARER, Reply, Running, form, picture

from sample_tasks import logits
from torchsnow.data import eval_transform, read_image
from torchsnow.hub import Hub
from torchsnow.serving.app import routes
from torchsnow.serving.guard import OPEN_PATHS
from torchsnow.serving.service import Service
from torchsnow.source import Source


def probabilities(hub: Hub, name: str, image: bytes) -> list[float]:
    """What a task says by itself, in the order of its classes."""
    task = hub.task(name)
    pixels = eval_transform(hub.source.input_config, task.framing)(read_image(io.BytesIO(image)))
    found: list[float] = logits(hub.source, task, pixels[None])[0].softmax(0).tolist()
    return found


def check(reply: Reply, hub: Hub, images: list[bytes], names: list[str]) -> None:
    assert reply.status == 200, reply.body
    for image, own in zip(images, reply.json["images"], strict=True):
        assert [answer["task"] for answer in own["answers"]] == names
        for answer in own["answers"]:
            entry, classes = hub.infos()[answer["task"]], hub.task(answer["task"]).classes
            assert (answer["sha256"], answer["version"]) == (entry.sha256, entry.sha256[:12])
            expected = probabilities(hub, answer["task"], image)
            assert [answer["probabilities"][name] for name in classes] == pytest.approx(expected, abs=1e-4)
            assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].__getitem__)
            assert answer["labels"] == [answer["label"]]
            assert (answer["unknown_score"] is None) == (answer["task"] != "b")


def test_every_task_answers_a_form(server: Running, hub: Hub) -> None:
    images = [picture(1), picture(2, (70, 33), kind="JPEG"), picture(3, kind="WEBP")]
    check(server.predict(images), hub, images, ["a", "b", "c"])


def test_named_tasks_answer_json(server: Running, hub: Hub) -> None:
    images = [picture(1), picture(2)]
    body = {"images": [base64.b64encode(image).decode() for image in images], "tasks": ["c", "a", "c"]}
    reply = server.call("POST", "/predict", json.dumps(body), {"content-type": "application/json"})
    check(reply, hub, images, ["a", "c"])


def test_requests_for_different_tasks_share_passes_and_get_their_own_answers(server: Running, hub: Hub) -> None:
    images = [picture(seed) for seed in range(24)]
    replies: dict[int, Reply] = {}

    def ask(number: int) -> None:
        replies[number] = server.predict([images[number]], ["abc"[number % 3]])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, reply in replies.items():
        check(reply, hub, [images[number]], ["abc"[number % 3]])
    assert passes(server) < 24


def passes(server: Running) -> float:
    return figure(server, "torchsnow_source_passes_total")


def figure(server: Running, name: str) -> float:
    lines = server.call("GET", "/metrics").body.decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split()[0] == name)


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "application/json", 400),
        (b'{"images": []}', "application/json", 400),
        (b'{"images": "x"}', "application/json", 400),
        (b'{"images": ["%%%"]}', "application/json", 422),
        (b'{"images": ["http://127.0.0.1/a.png"]}', "application/json", 422),
        (b'{"images": ["aGVsbG8="]}', "application/json", 415),
        (b'{"images": ["aGVsbG8="], "tasks": []}', "application/json", 400),
        (b'{"images": ["aGVsbG8="], "url": "x"}', "application/json", 400),
        (b'{"images": ["aGVsbG8="], "tasks": ["z"]}', "application/json", 404),
        (b'{"images": NaN}', "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"images": ["\\ud800"]}', "application/json", 422),
        (b"x", "text/plain", 415),
        (b"x", "", 415),
        (b"x", "multipart/form-data", 400),
        (b"x", "multipart/form-data; boundary=limit", 400),
        (form([("task", b"a", None)])[0], form([])[1], 400),
        (form([("other", b"a", "x.png")])[0], form([])[1], 400),
        (form([("image", picture(), "x.png"), ("other", b"a", None)])[0], form([])[1], 400),
        (form([("image", picture(), "x.png")])[0][:-12], form([])[1], 400),
    ],
)
def test_what_is_no_request_is_told_why(steady: Running, body: bytes, kind: str, status: int) -> None:
    reply = steady.call("POST", "/predict", body, {"content-type": kind})
    assert reply.status == status, reply.body
    assert set(reply.json) == {"error", "code"}


def test_a_near_name_is_offered(steady: Running) -> None:
    reply = steady.predict([picture()], ["aa"])
    assert (reply.status, reply.json["code"]) == (404, "unknown_task")
    assert "did you mean 'a'?" in reply.json["error"]


def test_tasks_are_listed(steady: Running) -> None:
    listed = steady.call("GET", "/tasks").json
    assert [task["task"] for task in listed["tasks"]] == ["a", "b", "c"]
    assert listed["unusable"] == []
    assert listed["tasks"][0]["classes"] == ["cat", "dog"]
    assert len(listed["tasks"][0]["sha256"]) == 64


def test_metrics_count(steady: Running) -> None:
    before = figure(steady, "torchsnow_batch_images_sum")
    assert steady.predict([picture(), picture(1)], ["b"]).status == 200
    assert figure(steady, "torchsnow_batch_images_sum") == before + 2
    text = steady.call("GET", "/metrics").body.decode()
    for name in ("queue_images", "request_seconds_bucket", "source_passes_total", "rejected", "tasks 3.0"):
        assert f"torchsnow_{name}" in text
    assert 'torchsnow_request_seconds_count{task="b"}' in text


def test_documents_are_there_and_name_every_route(steady: Running) -> None:
    document = steady.call("GET", "/openapi.json").json
    assert document["openapi"].startswith("3.1")
    assert served_paths(steady.service) == set(document["paths"])
    docs = steady.call("GET", "/docs")
    assert docs.status == 200
    assert b"/predict" in docs.body
    assert b"https://" not in docs.body


def served_paths(service: Service) -> set[str]:
    return {route.path for route in routes(service)}


def test_with_a_token_the_document_names_the_admin_routes_too(sealed: Running) -> None:
    document = sealed.call("GET", "/openapi.json", None, BEARER).json
    assert served_paths(sealed.service) == set(document["paths"])
    secured = {path for path, own in document["paths"].items() if all("security" in o for o in own.values())}
    assert set(document["paths"]) - secured == OPEN_PATHS


def test_a_deadline_must_be_a_number(steady: Running) -> None:
    for given in ("soon", "-1", "0", "nan"):
        assert steady.predict([picture()], **{"x-deadline-s": given}).status == 400
    assert steady.predict([picture()], **{"x-deadline-s": "20"}).status == 200


def test_an_empty_hub_says_so(hub: Hub, server: Running, source: Source) -> None:
    for name in "abc":
        hub.remove(name)
    server.wait_until(lambda: server.predict([picture()]).status == 404)
    assert server.call("GET", "/tasks").json["tasks"] == []
    assert server.call("GET", "/v2/health/ready").status == 200
