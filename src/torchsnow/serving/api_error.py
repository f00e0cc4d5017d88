"""What a client is told when it does not get what it asked for."""

from __future__ import annotations

_RETRY_AFTER_S = 5


class ApiError(Exception):
    """A request that is not answered: HTTP status, a code for programs and a sentence for people.

    The sentence goes to the client, so it names no path of this machine. `retry_after_s` is for those who may come
    again.
    """

    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after_s = status, code, message, retry_after_s


def api_error_of(lacking: str | None) -> ApiError | None:
    """The answer where this machine `lacking` something is why there is no other: 503, and to come again."""
    if lacking is None:
        return None
    return ApiError(503, "no_resources", f"the server cannot do this now: {lacking}; try again later", _RETRY_AFTER_S)


class ClientGone(Exception):  # noqa: N818 - an event
    """The client has closed the connection; nobody waits for an answer."""
