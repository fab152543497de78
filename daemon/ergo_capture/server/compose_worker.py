"""The worker process that composes bundles while their sessions run.

Requests come on standard input, answers go to standard output, each pickled, after its length in eight bytes. One
thread follows the sessions, at low priority; another one finishes bundles, at the daemon's priority, because a thread
cannot raise its priority again. At the end of its standard input the process removes its temporary files and exits.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, BinaryIO, Final, NamedTuple

from ergo_capture.bundle.writer.compose import ComposedBundle, ComposeJob
from ergo_capture.bundle.writer.running import RunningBundle
from ergo_capture.errors import ErgoCaptureError

#: Bytes of the length before each message.
LENGTH_BYTES: Final = 8
#: Increment of the niceness of the thread that follows the sessions.
_NICENESS: Final = 10
#: The most bytes of text that one request writes: a request to finish the bundle may have to wait for it.
_STEP_BYTES: Final = 8 << 20


class Advance(NamedTuple):
    """The request to write further events of a bundle; the answer is ``Progress``."""

    #: Number of the bundle, chosen by the daemon.
    bundle: int
    #: The part, without frames; the bundle is begun with it.
    job: ComposeJob
    #: Frames after those that were sent before, packed as in ``ComposeJob``.
    event_frames: bytes
    decision_frames: bytes
    #: Events of the part whose decisions are in the frames that were sent.
    decided: int


class Progress(NamedTuple):
    """The progress of a bundle."""

    #: Events written.
    composed: int
    #: Bytes of its temporary files.
    file_bytes: int


class Finish(NamedTuple):
    """The request to finish a bundle; the answer is the result of ``RunningBundle.finish``."""

    bundle: int
    job: ComposeJob


class Drop(NamedTuple):
    """The request to remove the temporary files of bundles; the answer is None."""

    bundles: list[int]


class Request(NamedTuple):
    """A message to the worker; the answer has the same number."""

    number: int
    what: Advance | Finish | Drop


class Answer(NamedTuple):
    """A message from the worker."""

    number: int
    value: Progress | ComposedBundle | None
    error: Exception | None = None


def pack(message: Request | Answer) -> bytes:
    """Return a message with its length before it."""
    body = pickle.dumps(message)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


class ComposeWorker:
    """The bundles of one worker process.

    Args:
        answer: called with each answer, from any thread.
    """

    def __init__(self, answer: Callable[[Answer], None]) -> None:
        self._answer = answer
        self._bundles: dict[int, tuple[RunningBundle, threading.Lock]] = {}
        self._following: SimpleQueue[Request | None] = SimpleQueue()
        self._finishing: SimpleQueue[Request | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, args=[self._following, _NICENESS], name="follow", daemon=True),
            threading.Thread(target=self._work, args=[self._finishing, 0], name="finish", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def put(self, request: Request) -> None:
        """Carry out a request, in this thread or in a worker thread."""
        if isinstance(request.what, Drop):
            self._do(request)
        else:
            (self._finishing if isinstance(request.what, Finish) else self._following).put(request)

    def close(self) -> None:
        """Remove the temporary files, after the steps that are under way."""
        for queue in (self._following, self._finishing):
            queue.put(None)
        for thread in self._threads:
            thread.join()
        self._drop(list(self._bundles))

    def _work(self, queue: SimpleQueue[Request | None], niceness: int) -> None:
        if niceness:
            # On Linux a niceness belongs to a thread.
            with suppress(OSError):
                thread = threading.get_native_id()
                os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + niceness)
        while (request := queue.get()) is not None:
            self._do(request)

    def _do(self, request: Request) -> None:
        value: Progress | ComposedBundle | None = None
        try:
            if isinstance(request.what, Advance):
                value = self._advance(request.what)
            elif isinstance(request.what, Finish):
                value = self._finish(request.what)
            else:
                self._drop(request.what.bundles)
        except ErgoCaptureError as error:
            self._answer(Answer(request.number, None, error))
        except Exception as error:  # noqa: BLE001 - the daemon decides what it means
            # Send the message: not every exception can be pickled.
            self._answer(Answer(request.number, None, RuntimeError(f"{type(error).__name__}: {error}")))
        else:
            self._answer(Answer(request.number, value))

    def _advance(self, request: Advance) -> Progress:
        if request.bundle not in self._bundles:
            self._bundles[request.bundle] = RunningBundle(request.job), threading.Lock()
        bundle, lock = self._bundles[request.bundle]
        with lock:
            try:
                bundle.add_frames(request.event_frames, request.decision_frames)
                bundle.advance(request.decided, _STEP_BYTES)
            except BaseException:
                self._bundles.pop(request.bundle, None)
                bundle.close()
                raise
            return Progress(bundle.composed, bundle.file_bytes)

    def _finish(self, request: Finish) -> ComposedBundle | None:
        bundle, lock = self._bundles.pop(request.bundle)
        with lock, bundle:
            return bundle.finish(request.job)

    def _drop(self, bundles: list[int]) -> None:
        for number in bundles:
            if (found := self._bundles.pop(number, None)) is not None:
                with found[1]:
                    found[0].close()


def main() -> None:
    """Serve the daemon until it closes the pipe."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # The end of standard input ends the process; until then the daemon may need it.
        signal.signal(number, signal.SIG_IGN)
    # As in ``publisher``: after each write the writing thread waits for the interpreter, which expands the next block.
    sys.setswitchinterval(0.0005)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    lock = threading.Lock()

    def answer(message: Answer) -> None:
        # If the daemon was killed, no process reads the answer.
        with lock, suppress(BrokenPipeError):
            answers.write(pack(message))
            answers.flush()

    worker = ComposeWorker(answer)
    while (request := _read(requests)) is not None:
        worker.put(request)
    worker.close()


def _read(file: BinaryIO) -> Request | None:
    length = file.read(LENGTH_BYTES)
    body = file.read(int.from_bytes(length, "little"))
    if len(length) < LENGTH_BYTES or not body:
        return None
    # The data is trusted: only the daemon has the other end of the pipe.
    request: Any = pickle.loads(body)  # noqa: S301
    assert isinstance(request, Request)
    return request
