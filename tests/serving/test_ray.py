"""Replicas on Ray give the answers of a single process, by the same tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from running_server import BEARER, TOKEN, Reply, Running, make_hub, picture
from test_open_inference import (  # noqa: F401 # run here again, on the fixtures below
    test_an_output_can_be_the_likeliest_classes,
    test_bytes_go_in_and_come_out_raw,
    test_inference_gives_what_predict_gives,
    test_lengths_that_lie_are_refused,
    test_the_index_names_states,
    test_the_server_and_its_models_describe_themselves,
    test_what_is_no_inference_is_refused,
)
from test_serving_predict import (  # noqa: F401
    probabilities,
    test_a_deadline_must_be_a_number,
    test_a_near_name_is_offered,
    test_every_task_answers_a_form,
    test_named_tasks_answer_json,
    test_requests_for_different_tasks_share_passes_and_get_their_own_answers,
    test_tasks_are_listed,
    test_what_is_no_request_is_told_why,
)

from local_ray import Ray
from torchsnow.errors import TorchsnowError
from torchsnow.hub import Hub
from torchsnow.hub.live import LiveHub
from torchsnow.serving.ray import app
from torchsnow.serving.service import Service
from torchsnow.serving.settings import ServeSettings
from torchsnow.serving.workers import bind
from torchsnow.source import Source

pytestmark = pytest.mark.integration


@contextmanager
def served(ray: Ray, hub: Hub, *words: str) -> Iterator[int]:
    """The port of `torchsnow serve --ray` until the block ends; then it must end in peace."""
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    given = ["serve", "--hub", hub.folder.path, "--ray", ray.address, "--port", port, "--device", "cpu", *words]
    with subprocess.Popen([sys.executable, "-m", "torchsnow", *map(str, given)], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = [process.stderr.readline()]
        while b'"serving"' not in said[-1]:
            assert said[-1], b"".join(said).decode()
            said.append(process.stderr.readline())
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


class Behind(Running):
    """What answers behind the proxy of a cluster; `service` is a twin of it, for what tests ask of that."""

    def call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        return super().call(method, path, body, {**BEARER, **(headers or {})})


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, source: Source) -> Hub:
    return make_hub(tmp_path_factory.mktemp("served") / "hub", source)


@pytest.fixture(scope="module")
def server(ray: Ray, hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(TOKEN)
    with served(ray, hub, "--replicas", "2", "--token-file", str(token)) as port:
        yield Behind(port, Service(LiveHub(hub), ServeSettings(token=TOKEN)))


@pytest.fixture(scope="module")
def steady(server: Running) -> Running:
    return server


@pytest.fixture(scope="module")
def guarded(server: Running) -> Running:
    return server


def test_a_replica_that_is_killed_costs_what_it_was_at_work_on_and_no_more(ray: Ray, server: Running, hub: Hub) -> None:
    images = [picture(seed) for seed in range(4)]
    expected = [probabilities(hub, "b", image) for image in images]
    classes = hub.task("b").classes
    num_callers, end, failed, wrong, answered = 4, threading.Event(), [], [], []

    def ask(caller: int) -> None:
        while not end.is_set():
            try:
                reply = server.predict([images[caller]], ["b"])
            except Exception as error:  # whatever becomes of a connection
                failed.append(error)
                continue
            if reply.status != 200:
                failed.append(reply)
                continue
            answered.append(caller)
            found = reply.json["images"][0]["answers"][0]["probabilities"]
            if [found[name] for name in classes] != pytest.approx(expected[caller], abs=1e-4):
                wrong.append(reply)

    replicas = ray.pids("ServeReplica:torchsnow")
    assert len(replicas) == 2
    with ThreadPoolExecutor(num_callers) as callers:
        asking = [callers.submit(ask, number) for number in range(num_callers)]
        try:
            server.wait_until(lambda: len(answered) > 40, 60)
            os.kill(replicas[0], signal.SIGKILL)
            before = len(answered)
            server.wait_until(lambda: len(answered) > before + 40, 60)
            server.wait_until(lambda: len(set(ray.pids("ServeReplica:torchsnow")) - {replicas[0]}) == 2, 60)
        finally:
            end.set()
        for future in asking:
            future.result()
    print(f"{len(answered)} answers, {len(failed)} requests failed")
    assert wrong == []
    assert len(failed) <= num_callers, failed


def test_requests_that_name_their_task_go_where_it_is_in_memory(server: Running) -> None:
    def ask(times: int, **headers: str) -> dict[str, float]:
        """How many requests each replica has answered for the task, after so many more."""
        for _ in range(times):
            assert server.predict([picture()], ["b"], **headers).status == 200
        words = [line.split() for line in server.call("GET", "/metrics").body.decode().splitlines()]
        return {one[0]: float(one[1]) for one in words if 'request_seconds_count{task="b"' in one[0]}

    named = {"serve-multiplexed-model-id": "b"}
    server.wait_until(lambda: len(ask(20)) == 2, 60)  # a replica that was made anew gets its first ones late
    ask(1, **named)
    time.sleep(1)  # Ray tells the proxy which replica has it ten times a second
    before = ask(0)
    after = ask(20, **named)
    assert {after[replica] - before[replica] for replica in after} == {0, 20}
    assert server.predict([picture()], ["b"], **{"serve-multiplexed-model-id": "no such task"}).status == 200


def test_a_task_that_is_removed_and_put_back_is_so_in_every_replica(server: Running, hub: Hub) -> None:
    for method, path, offered in (("DELETE", "/admin/tasks/c", 404), ("POST", "/admin/tasks/c/rollback", 200)):
        assert server.call(method, path).status == 200
        assert {server.predict([picture()], ["c"]).status for _ in range(20)} == {offered}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({}, "no hub is named"),
        ({"hub": "HUB", "rain": "1"}, "a server has no setting 'rain'"),
        ({"hub": "HUB", "batch_size": "0"}, "batch_size is 0; expected 1 to 4096"),
        ({"hub": "HUB", "replicas": "4-1"}, "replicas is '4-1'; expected a number as 2, or a range as 1-4"),
        ({"hub": "HUB", "gpus": "-1"}, "gpus is -1; expected a number from 0 to 8"),
        ({"hub": "HUB", "gpus": "many"}, "gpus is 'many'; expected a number from"),
        ({"hub": "missing"}, "missing is not a hub"),
    ],
)
def test_what_serve_run_is_told_is_checked(ray: Ray, told: dict[str, str], sentence: str, hub: Hub) -> None:
    with pytest.raises(TorchsnowError, match=sentence):
        app({name: text.replace("HUB", str(hub.folder.path)) for name, text in told.items()})
