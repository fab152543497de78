"""The daemon's process: its event loop, thread switching, descriptors and memory."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from ergo_capture import child_setup, telemetry
from ergo_capture.config import Config
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.server.net.listener import raise_descriptor_limit
from ergo_capture.server.service import Service

#: ``mallopt``'s number for the count of arenas.
_M_ARENA_MAX: Final = -8
#: The least limit of open files with which the daemon can serve a client: 24 are open before the first one comes.
_MIN_DESCRIPTORS: Final = 48


def run(config: Config, reread: Callable[[], Config] | None = None) -> int:
    """Serve until a signal stops the daemon.

    Args:
        config: the configuration.
        reread: loads the configuration again, for a reload.

    Returns:
        The exit code.

    Raises:
        ErgoCaptureError: start-up failed.
    """
    telemetry.write_in_background()
    child_setup.protect_children()
    # After each sync the commit thread waits for the interpreter, which the loop is using, for up to the default 5 ms:
    # a commit under load took 10.8 ms with the default, and takes 0.8 ms with this interval.
    sys.setswitchinterval(0.0005)
    raise_descriptor_limit(config.limits.max_clients)
    _check_descriptor_limit()
    # Use one arena for all threads. Each worker thread takes the next of sixteen arenas and leaves it half empty: after
    # minutes of load the process held 97 MiB, and 82 MiB with one arena, and was still growing. Threads that allocate
    # hold the interpreter lock anyway, so they do not wait for each other. Only glibc has arenas.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    # Freeze start-up objects so that full collections stay cheap.
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return int(runner.run(Service(config, reread=reread).run()))


def _check_descriptor_limit() -> None:
    """Check the limit of open files.

    Raises:
        ErgoCaptureError: it is too low to serve a client.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < _MIN_DESCRIPTORS:
        raise ErgoCaptureError(
            f"start daemon: the process may open {limit} files, and needs at least {_MIN_DESCRIPTORS}",
            op="start daemon",
            hint="raise the limit: `ulimit -n 1024` in the shell, LimitNOFILE= in the unit",
            exit_code=ExitCode.CONFIG,
        )


def fill_descriptors() -> None:
    """Open /dev/null as standard input, output and error where the parent process has closed them.

    The next files to be opened would take these numbers. A segment of the journal could become standard error, and the
    message of a fatal error would be written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # It gets the lowest free number, which is this one.
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - it is a descriptor, and stays


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
