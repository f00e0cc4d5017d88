from __future__ import annotations

import errno

import pytest
import torch

from torchsnow.errors import HubError
from torchsnow.io.shortage import shortage, system_shortage


def raised_from(cause: Exception) -> Exception:
    error = HubError("a sentence with /a/path")
    error.__cause__ = ValueError("between")
    error.__cause__.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("cause", "lacking"),
    [
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out of memory"),
        (RuntimeError("can't start new thread"), "out of memory"),
        (OSError(errno.ENOMEM, "no"), "out of memory"),
        (OSError(errno.ENOSPC, "no", "/a/path"), "no space left on device"),
        (OSError(errno.EMFILE, "no"), "too many open files"),
    ],
)
def test_what_is_lacking_is_found_behind_other_errors(cause: Exception, lacking: str) -> None:
    assert shortage(cause) == shortage(raised_from(cause)) == lacking
    assert shortage(ExceptionGroup("several", [ValueError(), raised_from(cause)])) == lacking


@pytest.mark.parametrize("cause", [OSError("broken data stream"), ValueError("out of memory"), RuntimeError("shape")])
def test_what_was_given_can_be_at_fault(cause: Exception) -> None:
    assert shortage(raised_from(cause)) is None
    assert system_shortage(raised_from(cause)) is None


def test_where_nobody_else_can_be_at_fault_every_refusal_of_the_system_counts() -> None:
    assert shortage(raised_from(PermissionError(errno.EACCES, "no"))) is None
    assert system_shortage(raised_from(PermissionError(errno.EACCES, "no"))) == "permission denied"
