"""The kernel as a shared library: compiled once for this processor, then kept."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

from torchsnow.errors import CompileError
from torchsnow.files import write_atomically

SOURCE_FILE = Path(__file__).with_name("kernel.cpp")
_FILES = (SOURCE_FILE, *(SOURCE_FILE.with_name(name) for name in ("dense.h", "maps.h", "others.h")))
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-pthread",
)
_TIMEOUT_S = 120


@cache
def kernel() -> ctypes.CDLL:
    """The kernel, ready to call. Raises CompileError without a C++ compiler, or when it cannot compile the kernel."""
    file = cache_folder() / f"kernel-{_key()}.so"
    if not file.exists():
        _compile(file)
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        raise CompileError(
            f"the compiled kernel {file} cannot be loaded: {error}; delete it to have it made again"
        ) from error


def cache_folder() -> Path:
    """Where compiled kernels are kept: `torchsnow/kernels` in XDG_CACHE_HOME, by default in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchsnow" / "kernels"


def _compiler() -> str:
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not found:
        raise CompileError(
            "the backend 'native' needs a C++ compiler (g++ or clang++), and there is none; CXX can name it"
        )
    return found


def _key() -> str:
    """Changes with the kernel, the compiler's flags and the processor that it was made for."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.exists() else []
    abilities = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    parts = (*(file.read_text(encoding="utf-8") for file in _FILES), *_FLAGS, platform.machine(), abilities)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _compile(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CompileError(f"cannot make the folder {file.parent} for the compiled kernel: {error.strerror}") from error
    made = file.with_name(f".{file.name}.{os.getpid()}")
    command = [_compiler(), *_FLAGS, "-shared", "-fPIC", "-pthread", "-o", str(made), str(SOURCE_FILE)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
        write_atomically(file, made.read_bytes(), CompileError)
    except (OSError, subprocess.SubprocessError) as error:
        why = getattr(error, "stderr", None) or str(error)
        raise CompileError(f"{command[0]} cannot compile the kernel: {str(why).strip().splitlines()[0]}") from error
    finally:
        made.unlink(missing_ok=True)
