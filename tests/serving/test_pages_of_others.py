"""Pages of other sites, where they may ask; and ids by which a request is found again."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest
from running_server import BEARER, TOKEN, Running, picture, running

from torchsnow.errors import ServingError
from torchsnow.hub import Hub
from torchsnow.hub.live import LiveHub
from torchsnow.serving.settings import ServeSettings

SITE = "https://pages.example"
ASKING = {"origin": SITE, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}


@pytest.fixture
def open_to_site(hub: Hub) -> Iterator[Running]:
    with running(LiveHub(hub), token=TOKEN, origins=(SITE,)) as server:
        yield server


def test_pages_of_a_site_that_may_can_ask(open_to_site: Running) -> None:
    server = open_to_site
    preflight = server.call("OPTIONS", "/predict", None, ASKING)  # browsers send it without the token
    assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (200, SITE)
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    answer = server.predict([picture()], **{**BEARER, "origin": SITE})
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, SITE)
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    refused = server.call("GET", "/tasks", None, {"origin": SITE})  # a page can read why
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, SITE)
    for path in ("/admin/tasks", "/v2/repository/models/a/unload"):
        assert server.call("POST", path, b"", {**BEARER, "origin": SITE}).status == 403
    other = server.predict([picture()], **{**BEARER, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    evil = {**ASKING, "origin": "https://evil.example"}
    assert server.call("OPTIONS", "/predict", None, evil).status == 400
    for method in ("DELETE", "PUT"):
        asking = {**ASKING, "access-control-request-method": method}
        assert server.call("OPTIONS", "/admin/tasks/a", None, asking).status == 400


def test_without_leave_no_page_of_another_site_can_read(steady: Running) -> None:
    reply = steady.call("GET", "/tasks", None, {"origin": SITE})
    assert not any(name.startswith("access-control") for name in reply.headers)
    assert steady.call("OPTIONS", "/predict", None, ASKING).status == 405


@pytest.mark.parametrize(
    "origin", ["pages.example", "https://pages.example/", "https://*.example", "null", "", "file://"]
)
def test_an_origin_is_one(origin: str) -> None:
    with pytest.raises(ServingError, match="no origin of a page"):
        ServeSettings(origins=(origin,))
    assert ServeSettings(origins=("*", "http://localhost:3000", "https://[::1]:80")).origins


def test_request_ids_are_taken_made_logged_and_returned(steady: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for given in ("abc-123", "4bf92f3577b34da6a3ce929d0e0e4736", "A" * 128, "x/y+z=:._"):
            reply = steady.call("GET", "/tasks", None, {"x-request-id": given})
            assert reply.headers["x-request-id"] == given
            steady.wait_until(lambda given=given: given in logged_ids(caplog))
    for odd in ("", "a b", "A" * 129, "\xe9", "a\tb", '"quoted"', "a,b"):
        made = steady.call("GET", "/nowhere", None, {"x-request-id": odd}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{16}", made), odd


def logged_ids(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [getattr(record, "fields", {}).get("request") for record in caplog.records]


def test_health_is_where_people_look_for_it(sealed: Running) -> None:
    assert (sealed.call("GET", "/health").status, sealed.call("GET", "/health").json) == (200, {"ready": True})
    sealed.service.drain()
    try:
        assert sealed.call("GET", "/health").status == 503
    finally:
        sealed.service._is_draining = False


def test_a_picture_is_a_whole_request(steady: Running) -> None:
    reply = steady.call("POST", "/predict?task=b&task=a&explain=true", picture(1), {"content-type": "image/png"})
    assert reply.status == 200, reply.body
    answers = reply.json["images"][0]["answers"]
    assert [answer["task"] for answer in answers] == ["a", "b"]
    assert all("lead" in answer for answer in answers)
    assert steady.call("POST", "/predict?size=3", picture(1), {"content-type": "image/png"}).status == 400
    assert steady.call("POST", "/predict", b"", {"content-type": "image/png"}).status == 400
    assert steady.call("POST", "/predict", b"text", {"content-type": "image/png"}).status == 415
