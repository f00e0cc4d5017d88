"""What a client is told when it does not get what it asked for."""

from __future__ import annotations


class Refusal(Exception):  # noqa: N818 - no mistake: an answer
    """A request that is not answered: HTTP status, a code for programs and a sentence for people.

    The sentence goes to the client, so it names no path of this machine. `retry_after_s` is for those who may come
    again.
    """

    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after_s = status, code, message, retry_after_s


class ClientGone(Exception):  # noqa: N818 - an event
    """The client has closed the connection; nobody waits for an answer."""
