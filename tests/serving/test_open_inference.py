"""The Open Inference Protocol V2, by hand and with a client library where one is installed."""

from __future__ import annotations

import base64
import json
import struct
import threading
from typing import Any

import numpy as np
import pytest
from running_server import BEARER, Reply, Running, picture, running

from torchsnow.hub import Hub
from torchsnow.hub.live import LiveHub


def infer(server: Running, images: list[bytes], path: str = "/v2/models/b/infer", **more: Any) -> Reply:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(images)]}
    data = [base64.b64encode(image).decode() for image in images]
    return server.call("POST", path, json.dumps({"inputs": [{**tensor, "data": data}], **more}))


def test_the_server_and_its_models_describe_themselves(steady: Running) -> None:
    about = steady.call("GET", "/v2").json
    assert (about["name"], about["extensions"]) == (
        "torchsnow",
        ["binary_tensor_data", "classification", "model_repository"],
    )
    for state in ("live", "ready"):
        assert steady.call("GET", f"/v2/health/{state}").json == {state: True}
    entry = steady.service.live.hub.infos()["b"]
    model = steady.call("GET", "/v2/models/b").json
    assert (model["name"], model["versions"]) == ("b", [entry.sha256[:12]])
    assert model["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert {o["name"]: (o["datatype"], o["shape"]) for o in model["outputs"]} == {
        "probabilities": ("FP32", [-1, 3]),
        "logits": ("FP32", [-1, 3]),
        "label": ("BYTES", [-1]),
        "unknown_score": ("FP32", [-1]),
    }
    assert steady.call("GET", f"/v2/models/b/versions/{entry.sha256[:12]}/ready").json == {"name": "b", "ready": True}
    assert steady.call("GET", "/v2/models/b/versions/1").status == 404
    assert steady.call("GET", "/v2/models/z/ready").status == 404


def test_inference_gives_what_predict_gives(steady: Running) -> None:
    images = [picture(1), picture(2)]
    reply = infer(steady, images, id="mine").json
    outputs = {output["name"]: output for output in reply["outputs"]}
    predicted = [image["answers"][0] for image in steady.predict(images, ["b"]).json["images"]]
    assert (reply["model_name"], reply["id"]) == ("b", "mine")
    assert reply["model_version"] == predicted[0]["version"]
    assert reply["parameters"]["sha256"] == predicted[0]["sha256"]
    assert outputs["label"]["data"] == [answer["label"] for answer in predicted]
    classes = steady.service.live.hub.task("b").classes
    expected = [answer["probabilities"][name] for answer in predicted for name in classes]
    assert outputs["probabilities"]["data"] == pytest.approx(expected, abs=1e-4)
    assert outputs["probabilities"]["shape"] == [2, 3]


def test_unknown_scores_are_given_to_who_asks_a_task_that_knows_them(steady: Running) -> None:
    images, wanted = [picture(1), picture(2)], [{"name": "unknown_score"}]
    (output,) = infer(steady, images, outputs=wanted).json["outputs"]
    predicted = [image["answers"][0]["unknown_score"] for image in steady.predict(images, ["b"]).json["images"]]
    assert output == {"name": "unknown_score", "datatype": "FP32", "shape": [2], "data": pytest.approx(predicted)}
    task = steady.service.live.hub.task("b")
    assert task.unknown_above == 1e-3
    refused = infer(steady, images, "/v2/models/a/infer", outputs=wanted)
    assert (refused.status, "no unknown_score" in refused.json["error"]) == (400, True)


def test_bytes_go_in_and_come_out_raw(steady: Running) -> None:
    image = picture(1)
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(image) + 4}}
    wanted = [{"name": "probabilities", "parameters": {"binary_data": True}}, {"name": "label"}]
    head = json.dumps({"inputs": [tensor], "outputs": wanted}).encode()
    body = head + struct.pack("<I", len(image)) + image
    reply = steady.call("POST", "/v2/models/b/infer", body, {"inference-header-content-length": str(len(head))})
    end = int(reply.headers["inference-header-content-length"])
    shares, label = json.loads(reply.body[:end])["outputs"]
    assert shares["parameters"] == {"binary_data_size": 12}
    raw = np.frombuffer(reply.body[end:], "<f4")
    plain = {output["name"]: output["data"] for output in infer(steady, [image]).json["outputs"]}
    assert raw == pytest.approx(plain["probabilities"], abs=1e-5)
    assert label["data"] == plain["label"]


BAD: list[tuple[bytes, dict[str, str]]] = [
    (b"", {}),
    (b"{}", {}),
    (b"[]", {}),
    (b'{"inputs": []}', {}),
    (b'{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1], "data": [1]}]}', {}),
    (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "data": ["aGk="]}]}', {}),
    (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": ["x"], "data": ["aGk="]}]}', {}),
    (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [1]}]}', {}),
    (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [0], "data": []}]}', {}),
    (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aGk="]}], "outputs": [1]}', {}),
    (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aGk="]}], "parameters": 1}', {}),
    (
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aGk="]}], '
        b'"outputs": [{"name": "nope"}]}',
        {},
    ),
    (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [[1]], "data": ["aGk="]}]}', {}),
    (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1e400], "data": ["aGk="]}]}', {}),
    (b"{}", {"inference-header-content-length": "-1"}),
    (b"{}", {"inference-header-content-length": "9" * 30}),
    (b"{}", {"inference-header-content-length": "1"}),
]


@pytest.mark.parametrize(("body", "headers"), BAD)
def test_what_is_no_inference_is_refused(steady: Running, body: bytes, headers: dict[str, str]) -> None:
    reply = steady.call("POST", "/v2/models/b/infer", body, headers)
    assert reply.status == 400, reply.body
    assert isinstance(reply.json["error"], str)


def test_lengths_that_lie_are_refused(steady: Running) -> None:
    for size, tail in ((8, b"\xff\xff\xff\xff1234"), (2, b"12"), (5, b"1234"), (4, b"\0\0\0\0"), ("x", b"1234")):
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
        head = json.dumps({"inputs": [tensor]}).encode()
        headers = {"inference-header-content-length": str(len(head))}
        assert steady.call("POST", "/v2/models/b/infer", head + tail, headers).status in (400, 415)


def test_the_index_names_states(guarded: Running) -> None:
    versions = {name: entry.sha256[:12] for name, entry in guarded.service.live.hub.infos().items()}
    index = guarded.call("POST", "/v2/repository/index", b"", BEARER).json
    assert [(row["name"], row["version"], row["state"]) for row in index] == [
        (name, version, "READY") for name, version in versions.items()
    ]
    assert guarded.call("POST", "/v2/repository/models/b/unload", b"{}", BEARER).status == 200
    assert guarded.call("GET", "/v2/models/b/ready", None, BEARER).status == 404
    assert guarded.predict([picture()], ["b"], **BEARER).status == 404
    assert [a["task"] for a in guarded.predict([picture()], **BEARER).json["images"][0]["answers"]] == ["a", "c"]
    index = guarded.call("POST", "/v2/repository/index", b'{"ready": true}', BEARER).json
    assert [row["name"] for row in index] == ["a", "c"]
    assert guarded.call("POST", "/v2/repository/models/b/load", b"{}", BEARER).status == 200
    assert guarded.predict([picture()], ["b"], **BEARER).status == 200
    assert guarded.call("POST", "/v2/repository/models/z/load", b"{}", BEARER).status == 404


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("binary", [True, False])
def test_a_client_library_gets_its_answers(sealed: Running, binary: bool) -> None:
    triton = pytest.importorskip("tritonclient.http", exc_type=ImportError)
    client = triton.InferenceServerClient(f"127.0.0.1:{sealed.port}")
    images, name = [picture(1), picture(2)], "b"
    try:
        assert client.is_server_live(dict(BEARER))
        assert client.is_server_ready(dict(BEARER))
        assert client.get_server_metadata(dict(BEARER))["name"] == "torchsnow"
        assert client.is_model_ready(name, headers=dict(BEARER))
        assert client.get_model_metadata(name, headers=dict(BEARER))["platform"] == "torchsnow"
        assert {row["name"] for row in client.get_model_repository_index(dict(BEARER))} == {"a", "b", "c"}
        client.load_model(name, headers=dict(BEARER))
        tensor = triton.InferInput("image", [2], "BYTES")
        data = images if binary else [base64.b64encode(image) for image in images]
        tensor.set_data_from_numpy(np.array(data, dtype=np.object_), binary_data=binary)
        outputs = [
            triton.InferRequestedOutput(output, binary_data=binary) for output in ("probabilities", "label", "logits")
        ]
        for wanted in (outputs, None):
            result = client.infer(name, [tensor], outputs=wanted, headers=dict(BEARER), request_id="7")
            predicted = [image["answers"][0] for image in sealed.predict(images, [name], **BEARER).json["images"]]
            classes = sealed.service.live.hub.task(name).classes
            expected = [[answer["probabilities"][label] for label in classes] for answer in predicted]
            np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-4)
            assert [
                str(label, "utf-8") if isinstance(label, bytes) else label for label in result.as_numpy("label")
            ] == [answer["label"] for answer in predicted]
            assert result.get_response()["model_version"] == predicted[0]["version"]
        with pytest.raises(triton.InferenceServerException, match="no model of this name"):
            client.infer("z", [tensor], headers=dict(BEARER))
    finally:
        client.close()


def test_a_request_that_the_queue_has_no_room_for_is_refused_before_its_body_comes(hub: Hub) -> None:
    live, gate = LiveHub(hub), threading.Event()
    answer = live.run

    def slow(*given: Any) -> Any:
        gate.wait(30)
        return answer(*given)

    live.run = slow  # type: ignore[method-assign]
    with running(live, batch_size=1, queue_size=1) as server:
        threads = [threading.Thread(target=server.predict, args=([picture()], ["b"])) for _ in range(4)]
        for thread in threads:
            thread.start()
        server.wait_until(lambda: b'rejected_total{reason="queue_full"} 1.0' in server.call("GET", "/metrics").body)
        with server.socket() as client:
            client.sendall(b"POST /v2/models/b/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")
            reply = b""
            while not reply.endswith(b'"queue_full"}'):
                reply += client.recv(4096)
            assert reply.startswith(b"HTTP/1.1 429 ")
            assert b"retry-after: " in reply.lower()
            client.sendall(bytes(1000) + b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")  # the body is dropped
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        gate.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("binary", [False, True])
def test_an_output_can_be_the_likeliest_classes(steady: Running, binary: bool) -> None:
    asked = {"name": "probabilities", "parameters": {"classification": 2, "binary_data": binary}}
    data = [base64.b64encode(picture(seed)).decode() for seed in (1, 2)]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [2], "data": data}
    body = json.dumps({"inputs": [tensor], "outputs": [asked, {"name": "logits", "parameters": {"classification": 9}}]})
    reply = steady.call("POST", "/v2/models/c/infer", body)
    assert reply.status == 200, reply.body
    end = int(reply.headers.get("inference-header-content-length", len(reply.body)))
    first, second = json.loads(reply.body[:end])["outputs"]
    assert (first["datatype"], first["shape"], second["shape"]) == ("BYTES", [2, 2], [2, 4])
    if binary:
        assert first["parameters"]["binary_data_size"] == len(reply.body) - end
        return
    answers = steady.predict([picture(1), picture(2)], ["c"]).json["images"]
    for row, answer in enumerate(image["answers"][0] for image in answers):
        for text, name in zip(first["data"][2 * row : 2 * row + 2], answer["ranking"], strict=False):
            value, _, label = text.split(":")
            assert (float(value), label) == (pytest.approx(answer["probabilities"][name], abs=1e-4), name)


@pytest.mark.parametrize(("name", "count"), [("label", 1), ("logits", -1), ("logits", True), ("logits", "3")])
def test_a_number_of_classes_is_one(steady: Running, name: str, count: object) -> None:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aGk="]}
    outputs = [{"name": name, "parameters": {"classification": count}}]
    reply = steady.call("POST", "/v2/models/c/infer", json.dumps({"inputs": [tensor], "outputs": outputs}))
    assert reply.status == 400
