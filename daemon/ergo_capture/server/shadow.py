"""Shadow verification: each finished bundle is verified once more after it was published, in a process at low priority.

A bundle's journal segments are kept until it has passed, within a bound, so that a bad one can be composed again. The
result is written beside the bundle, as ``SESSION.verified.json``.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec
import structlog
from anyio import to_thread

from ergo_capture import telemetry
from ergo_capture.bundle.names import manifest_path, verified_path
from ergo_capture.child_process import ChildProcess
from ergo_capture.config.settings import VerifyConfig
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.payloads import Publication, SessionDescription
from ergo_capture.journal.wal import Journal
from ergo_capture.server.ops.status_model import ShadowStatus
from ergo_capture.server.session.parts import utc_now
from ergo_capture.server.verify_worker import Answer
from ergo_capture.storage.atomic import write_bytes_atomic
from ergo_capture.version import PROGRAM

log = structlog.get_logger()

VERIFIED_FORMAT: Final = "ergo-capture-verified.v1"
_COMMAND: Final = (sys.executable, "-P", "-c", "from ergo_capture.server.verify_worker import main; main()")
#: The largest number of waiting bundles; if there are more, the oldest one is skipped.
_MAX_WAITING: Final = 1_000
#: Seconds for which the idle time of the processors is measured.
_LOOK_SECONDS: Final = 1.0
#: The least share of one processor's time in these seconds with which a processor counts as idle.
_IDLE_SHARE: Final = 0.9
#: Seconds without a bundle after which the worker is ended.
_LINGER_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A bundle that is to be verified."""

    session: str
    graph: str
    bundle: Path
    sha256: str
    #: The oldest journal segment that it was composed from.
    segment: int


class ShadowVerifier:
    """Verifies finished bundles after they were published.

    Args:
        config: whether they are verified.
        keep_bytes: the most bytes of journal that are kept for waiting and failed bundles.
        journal: the journal.
        on_released: called when segments of the journal may have become unneeded.
    """

    def __init__(
        self, config: VerifyConfig, keep_bytes: int, journal: Journal, on_released: Callable[[], None]
    ) -> None:
        self._config = config
        self._keep_bytes = keep_bytes
        self._journal = journal
        self._on_released = on_released
        self._waiting: deque[_Waiting] = deque()
        #: The segments that are kept, by bundle, for bundles that wait or have failed.
        self._kept: dict[Path, tuple[int, str]] = {}
        self._added = asyncio.Event()
        self._worker: _Worker | None = None
        self._passed = self._failed = self._skipped = 0
        self._last_failed: str | None = None

    def add(self, description: SessionDescription, publication: Publication, segment: int) -> None:
        """Queue a finished bundle for verification; its segments are kept from now on."""
        if self._config.after_publish == "never":
            return
        if len(self._waiting) == _MAX_WAITING:
            self._skip(self._waiting.popleft())
        bundle = Path(publication.bundle)
        self._waiting.append(_Waiting(description.session, description.graph, bundle, publication.sha256, segment))
        self._kept[bundle] = segment, description.session
        self._bound()
        self._added.set()

    def needed(self) -> Iterator[tuple[int, str]]:
        """Yield the oldest segment that is kept for each bundle, with its session's id."""
        self._bound()
        return iter(list(self._kept.values()))

    def status(self) -> ShadowStatus | None:
        """Return the results since the start; None if bundles are not verified."""
        if self._config.after_publish == "never":
            return None
        return ShadowStatus(
            waiting=len(self._waiting),
            passed=self._passed,
            failed=self._failed,
            skipped=self._skipped,
            last_failed=self._last_failed,
        )

    async def run(self) -> None:
        """Verify the queued bundles until cancelled; then end the worker."""
        try:
            while True:
                with anyio.move_on_after(_LINGER_SECONDS) as idle:
                    await self._added.wait()
                self._added.clear()
                if idle.cancelled_caught:
                    await self._end_worker()
                while self._waiting:
                    if self._config.after_publish == "when idle" and not await _is_idle():
                        self._bound()
                        continue
                    await self._verify(self._waiting.popleft())
        finally:
            with anyio.CancelScope(shield=True):
                await self._end_worker()

    async def _verify(self, waiting: _Waiting) -> None:
        try:
            if self._worker is None:
                self._worker = await _Worker.start()
            answer = await self._worker.ask(waiting.bundle)
        except (OSError, EOFError) as error:
            log.warning(telemetry.WORKER_BROKEN, error=str(error), bundle=str(waiting.bundle))
            await self._end_worker()
            self._skip(waiting)
            return
        if answer.ok is None:
            self._skip(waiting)
            return
        about = {"session": waiting.session, "graph": waiting.graph, "bundle": str(waiting.bundle)}
        if answer.ok:
            self._passed += 1
            self._release(waiting.bundle)
            log.info(telemetry.BUNDLE_VERIFIED, **about, events=answer.events)
        else:
            self._failed += 1
            self._last_failed = str(waiting.bundle)
            log.error(
                telemetry.BUNDLE_REFUTED,
                **about,
                error=answer.problem,
                hint="its segments of the journal are kept, up to verify.keep_bytes: copy the journal now, and run "
                "`ergo-capture recover` on the copy; check the disk and the memory of this host",
            )
        await to_thread.run_sync(_write, waiting, answer)

    def _skip(self, waiting: _Waiting) -> None:
        self._skipped += 1
        self._release(waiting.bundle)

    def _release(self, bundle: Path) -> None:
        if self._kept.pop(bundle, None) is not None:
            self._on_released()

    def _bound(self) -> None:
        """Skip bundles that keep more of the journal than is allowed."""
        size, kept = 0, set()
        for segment, bytes_of in sorted(self._journal.segments.items(), reverse=True):
            size += bytes_of
            # The current segment is there in any case.
            if segment >= self._journal.current_segment or size <= self._keep_bytes:
                kept.add(segment)
        gone = [bundle for bundle, (segment, _) in self._kept.items() if segment not in kept]
        for bundle in gone:
            self._release(bundle)

    async def _end_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.end()


def _write(waiting: _Waiting, answer: Answer) -> None:
    """Write the result to a file beside the bundle, unless the bundle is gone."""
    found: dict[str, Any] = {
        "format": VERIFIED_FORMAT,
        "bundle": waiting.bundle.name,
        "sha256": waiting.sha256,
        "ok": answer.ok,
        "verified_at": utc_now(),
        "program": PROGRAM,
    }
    if answer.problem:
        found["problem"] = answer.problem
    path = verified_path(waiting.bundle)
    with suppress(ErgoCaptureError):
        write_bytes_atomic(path, msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n", what="verification")
    if not manifest_path(waiting.bundle).exists():
        with suppress(OSError):
            path.unlink()


async def _is_idle() -> bool:
    """Return whether a processor was idle during the next second."""
    before = _idle_ticks()
    await anyio.sleep(_LOOK_SECONDS)
    return _idle_ticks() - before >= _IDLE_SHARE * _LOOK_SECONDS * os.sysconf("SC_CLK_TCK")


def _idle_ticks() -> int:
    """Return the idle time of all processors together, in ticks of the kernel's clock."""
    with suppress(OSError, ValueError, IndexError), Path("/proc/stat").open() as file:
        return int(file.readline().split()[4])
    return 0


class _Worker:
    """The worker process."""

    def __init__(self, child: ChildProcess, stdin: Any, stdout: Any, errors: asyncio.Task[None]) -> None:
        self._child, self._stdin, self._stdout, self._errors = child, stdin, stdout, errors
        self._held = b""

    @classmethod
    async def start(cls) -> _Worker:
        """Start it.

        Raises:
            OSError: it cannot be started.
        """
        child = ChildProcess(_COMMAND)
        errors = asyncio.create_task(_discard(await child.open_reader(child.process.stderr)))
        return cls(child, await child.open_stdin(), await child.open_reader(child.process.stdout), errors)

    async def ask(self, bundle: Path) -> Answer:
        """Verify a bundle in the worker, and return its answer.

        Raises:
            OSError: the request cannot be sent.
            EOFError: the worker ends before it answers.
        """
        await self._stdin.send(msgspec.json.encode(os.fsdecode(bundle)) + b"\n")
        try:
            while b"\n" not in self._held:
                self._held += await self._stdout.receive(1 << 16)
        except anyio.EndOfStream:
            raise EOFError(self._child.how_ended() or "the worker has ended") from None
        line, _, self._held = self._held.partition(b"\n")
        return msgspec.json.decode(line, type=Answer)

    async def end(self) -> None:
        """End the process."""
        await self._child.kill()
        self._errors.cancel()
        self._child.close()


async def _discard(stream: Any) -> None:
    with suppress(anyio.EndOfStream, OSError):
        while True:
            await stream.receive()
