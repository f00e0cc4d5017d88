"""What a machine lacks, told apart from what is wrong with what it was given."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

_LACKS = frozenset(
    (
        *(errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EAGAIN),
        *(errno.EBUSY, errno.ENOBUFS, errno.ESTALE, errno.ETIMEDOUT),
    )
)
# How PyTorch and what is below it say that there is no memory, or Python that there is none for a thread.
_WORDS = ("allocate memory", "bad_alloc", "CUDA error: out of memory", "ALLOC_FAILED", "can't start new thread")


def shortage(error: BaseException) -> str | None:
    """What the machine lacks, in a few words without paths, if an error or what it came of says so; else None."""
    for cause in _causes(error):
        if isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError) and _speaks_of_memory(cause)):
            return "out of memory"
        number = cause.errno if isinstance(cause, OSError) else None
        if number == errno.ENOMEM:
            return "out of memory"
        if number in _LACKS:
            return os.strerror(number or 0).lower()
    return None


def system_shortage(error: BaseException) -> str | None:
    """As `shortage`; and for whatever else the system refused, where no one but the machine can be at fault."""
    numbers = (cause.errno for cause in _causes(error) if isinstance(cause, OSError))
    return shortage(error) or next((os.strerror(number).lower() for number in numbers if number is not None), None)


def _speaks_of_memory(error: RuntimeError) -> bool:
    """By its name, for this file is read where there is no PyTorch, or its words."""
    return type(error).__name__ == "OutOfMemoryError" or any(word in str(error) for word in _WORDS)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and the errors that it was raised from."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for part in error.exceptions:
                yield from _causes(part)
        error = error.__cause__
