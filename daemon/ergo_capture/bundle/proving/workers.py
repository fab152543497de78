"""Check the events of a large bundle in several processes.

The list is cut where elements seem to begin. Each stretch is read by itself: if every stretch is whole elements, so is
the list, even if a cut was wrong. Workers return columns without payloads.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from array import array
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Final

from ergo_capture import signals
from ergo_capture.bundle.proving.checking import CheckedEvents, Unproven, check_events
from ergo_capture.bundle.reader import meter
from ergo_capture.bundle.reader.elements import EVENT_COLUMNS, ElementCursor, ElementError
from ergo_capture.bundle.reader.opening import identity_of, open_binary
from ergo_capture.bundle.reader.outline import Span
from ergo_capture.child_setup import end_with_parent, protect_children
from ergo_capture.kernel.events import ExternalEventKind
from ergo_capture.kernel.time import EventTime

#: Bytes of a stretch.
STRETCH: Final = 4 << 20
#: Bytes in which a cut is searched for; without one, a stretch is longer.
_SEARCHED: Final = 256 << 10
#: How many stretches each worker reads ahead of those that were taken.
_AHEAD: Final = 2
_CUT: Final = re.compile(rb'(?<=\})[ \t\r\n]*(,)[ \t\r\n]*\{[ \t\r\n]*"event_id"')
_KINDS: Final = tuple(ExternalEventKind)
_NUMBERS: Final = {kind: number for number, kind in enumerate(_KINDS)}

#: A file's ``identity_of``.
_Identity = tuple[int, int, int]
#: The columns of a stretch: ids, numbers of kinds, and, if wanted, seconds and nanoseconds.
_Columns = tuple[list[str], bytes, "array[int] | None", "array[int] | None"]


def check_stretches(
    path: Path, identity: _Identity, span: Span, jobs: int, *, with_times: bool
) -> Iterator[CheckedEvents]:
    """Check the events of a list in processes of their own, and yield them in order.

    Args:
        path: the bundle file, which is not compressed.
        identity: the file's ``identity_of``.
        span: the bytes between the list's brackets.
        jobs: how many processes.
        with_times: whether event times are wanted.

    Raises:
        Unproven: they are not all sound, or the file was replaced, or a process was killed.
        OSError: the file cannot be read.
    """
    protect_children()
    waiting: deque[tuple[Span, Future[_Columns | None]]] = deque()
    meter.begin("reading", span.end - span.start)
    with ProcessPoolExecutor(jobs, initializer=begin_worker, initargs=(os.getpid(),)) as pool:
        try:
            for stretch in _cut(path, span):
                future = pool.submit(_check_stretch, path, identity, stretch, with_times=with_times)
                waiting.append((stretch, future))
                if len(waiting) > _AHEAD * jobs:
                    yield _taken(*waiting.popleft())
            while waiting:
                yield _taken(*waiting.popleft())
        except BrokenProcessPool as error:
            raise Unproven from error
        finally:
            pool.shutdown(cancel_futures=True)


def begin_worker(parent: int) -> None:
    """Prepare a worker process: Ctrl-C ends its parent, and with that the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signals.end_at_once()
    meter.silence()
    if multiprocessing.get_start_method() == "fork":
        # Other start methods put a process between parent and worker.
        end_with_parent(parent)


def _cut(path: Path, span: Span) -> Iterator[Span]:
    """Yield the stretches of a list."""
    with open_binary(path) as file:
        start = span.start
        while span.end - start > 2 * STRETCH:
            at = start + STRETCH
            file.seek(at)
            found = None
            while found is None and at < span.end:
                held = file.read(min(_SEARCHED, span.end - at))
                if not held:
                    break
                found = _CUT.search(held)
                if found is None:
                    at += len(held)
            if found is None:
                break
            yield Span(start, at + found.start(1))
            start = at + found.end(1)
        yield Span(start, span.end)


def _check_stretch(path: Path, identity: _Identity, span: Span, *, with_times: bool) -> _Columns | None:
    """Return the columns of a stretch's events; None if they are not all sound."""
    ids: list[str] = []
    kinds = bytearray()
    secs, nanos = array("Q"), array("L")
    try:
        with open_binary(path) as file:
            if identity_of(file) != identity:
                return None
            file.seek(span.start)
            cursor = ElementCursor(file, span, EVENT_COLUMNS)
            while (block := cursor.read()) is not None:
                events = check_events(block)
                ids += events.ids
                kinds += bytes([_NUMBERS[kind] for kind in events.kinds])
                if with_times:
                    secs.extend([time.secs for time in events.times])
                    nanos.extend([time.nanos for time in events.times])
    except (Unproven, ElementError, OSError):
        return None
    return ids, bytes(kinds), secs if with_times else None, nanos if with_times else None


def _taken(stretch: Span, future: Future[_Columns | None]) -> CheckedEvents:
    """Wait for a stretch and return its events."""
    columns = future.result()
    meter.advance(stretch.end - stretch.start)
    if columns is None:
        raise Unproven
    ids, kinds, secs, nanos = columns
    times = () if secs is None or nanos is None else list(map(EventTime, secs, nanos))
    return CheckedEvents(ids, times, [_KINDS[number] for number in kinds])
