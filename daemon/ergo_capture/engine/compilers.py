"""Engines that compile at run time, where memory may not be both writable and executable.

The shipped systemd unit forbids such memory (MemoryDenyWriteExecute=), as SELinux can. A just-in-time compiler then ends
in a crash that does not say why.
"""

from __future__ import annotations

import mmap
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

#: Programs with a just-in-time compiler that is on by default.
_COMPILERS: Final = re.compile(
    r"(node|nodejs|deno|bun|java|dotnet|mono|pwsh|luajit|julia|pypy|erl|elixir|escript|iex|wasmtime|d8)[\d.-]*"
)
#: An argument that turns the compiler off.
_OFF: Final = frozenset({"--jitless", "-Xint", "--jit=off", "-joff"})

WAYS_OUT: Final = (
    'run it as a unit of its own with `kind = "socket"`, or write `MemoryDenyWriteExecute=no` below `[Service]` in '
    "/etc/systemd/system/ergo-capture.service.d/engine.conf; see `ergo-capture help systemd`"
)


def compiler_of(command: Sequence[str]) -> str:
    """Return the program of a command that compiles at run time, an interpreter of its script included, or ``""``."""
    if _OFF & set(command):
        return ""
    words = [Path(word).name for word in command[:1]]
    if words == ["env"]:
        words = [Path(word).name for word in command[1:] if not word.startswith("-") and "=" not in word][:1]
    path = shutil.which(command[0])
    if path is not None:
        words += [Path(word).name for word in _first_line(Path(path)).split()]
        words.append(Path(path).resolve().name)
    return next((word for word in words if _COMPILERS.fullmatch(word)), "")


def _first_line(path: Path) -> str:
    """Return what follows ``#!`` in a script, without options."""
    try:
        with path.open("rb") as file:
            line = file.readline(256)
    except OSError:
        return ""
    return line[2:].decode("utf-8", "replace") if line.startswith(b"#!") else ""


def may_compile() -> bool:
    """Return whether this process, and so a child of it, may have memory that is both writable and executable."""
    try:
        mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except OSError:
        return False
    return True


def compiler_problem(command: Sequence[str]) -> str:
    """Return why an engine that compiles at run time cannot run here, and what to do; ``""`` if that is not so."""
    program = compiler_of(command)
    if not program or may_compile():
        return ""
    return f"'{program}' compiles at run time, and memory may not be both writable and executable here; {WAYS_OUT}"
