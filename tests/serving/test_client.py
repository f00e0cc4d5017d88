from __future__ import annotations

from pathlib import Path

import pytest
from running_server import TOKEN, Running, picture
from starlette.responses import Response

from torchsnow.errors import ServingError
from torchsnow.serving import Client


def test_a_client_gets_the_answers(sealed: Running, tmp_path: Path) -> None:
    client = Client(sealed.url + "/", TOKEN)
    (tmp_path / "x.png").write_bytes(picture(1))
    first, second = client.predict([tmp_path / "x.png", picture(2)], ["b", "a"])
    assert [answer["task"] for answer in first] == ["a", "b"]
    assert set(first[0]) == {
        "task",
        "version",
        "sha256",
        "label",
        "labels",
        "ranking",
        "probabilities",
        "unknown_score",
    }
    assert second != first
    assert [task["task"] for task in client.tasks()] == ["a", "b", "c"]


def test_what_goes_wrong_is_one_sentence(sealed: Running, tmp_path: Path) -> None:
    client = Client(sealed.url, TOKEN)
    with pytest.raises(ServingError, match=r"no task of this name.*\(404\)"):
        client.predict([picture()], ["z"])
    with pytest.raises(ServingError, match=r"no JPEG or PNG .* picture \(415\)"):
        client.predict([b"x"])
    with pytest.raises(ServingError, match=r"token.*\(401\)"):
        Client(sealed.url).tasks()
    with pytest.raises(ServingError, match="no such file"):
        client.predict([tmp_path / "gone.png"])
    with pytest.raises(ServingError, match="cannot be used"):
        Client("http://127.0.0.1:1").tasks()


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "{"])
def test_a_reply_that_is_no_json_is_refused(steady: Running, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("torchsnow.serving.app.as_json", lambda value: Response(text))
    with pytest.raises(ServingError, match="cannot be used"):
        Client(steady.url).tasks()


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x", "http://", "file:///etc/passwd"])
def test_odd_addresses_are_refused(url: str) -> None:
    with pytest.raises(ServingError, match="is no address of a server"):
        Client(url)
