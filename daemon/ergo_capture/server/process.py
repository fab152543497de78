"""The daemon as a process of the operating system: its loop, its threads' turns, its descriptors, its memory."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sys
from collections.abc import Callable
from typing import Final

from ergo_capture.config import Config
from ergo_capture.server.net.admission import make_room
from ergo_capture.server.service import Service

#: ``mallopt``'s name for the number of arenas.
_M_ARENA_MAX: Final = -8


def run(config: Config, reread: Callable[[], Config] | None = None) -> int:
    """Serve until a signal stops it; returns the exit code. ``reread`` loads the configuration again.

    Raises:
        ErgoCaptureError: start-up failed.
    """
    # Why: the commit thread comes back from each sync to an interpreter that the loop is using, and would wait
    # for it for the usual 5 ms; a commit under load then took 10.8 ms, and 0.8 ms with this.
    sys.setswitchinterval(0.0005)
    make_room(config.limits.max_clients)
    _keep_one_arena()
    # Why: what is there now stays for good. Left out of the count, it does not make the collector wait for a quarter
    # as many new objects before it looks at all of them, and each look takes a tenth of the time.
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return int(runner.run(Service(config, reread=reread).run()))


def fill_descriptors() -> None:
    """Have standard input, output and error be something, where whoever started us has closed them.

    Why: the next files to be opened would take their numbers, a segment of the journal that of standard error, and what
    is said there of a fatal error would be written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free: this one.
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - it is a descriptor, and stays


def _keep_one_arena() -> None:
    """Have all threads allocate from one arena, where the C library is glibc.

    Why: worker threads come and go, each takes the next of sixteen arenas and leaves it half empty. After minutes of
    load the process held 97 MiB for what took 82 with one, and it had not stopped growing. The threads that allocate
    hold the interpreter's lock anyway, so none waits for another.
    """
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    except (OSError, AttributeError):
        return


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
