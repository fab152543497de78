"""Stream a file or a pipe to the daemon, with messages and a progress bar, for ``ergo-capture send``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from ergo_capture.cli.support.event_input import MAX_LINE_BYTES, EventLines
from ergo_capture.cli.support.input_form import InputRefused
from ergo_capture.client import CaptureClient, ClientError, Note, Published, Refused, Reject
from ergo_capture.protocol.capture import Code, IngressReason, unwrap_event
from ergo_capture.units import counted

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

#: How many characters of a line without an id are shown.
_SHOWN: Final = 60


class Sender:
    """One run of ``send``: a client, its input and its progress.

    Args:
        path: the daemon's socket.
        file: the input, or ``-`` for standard input.
        window: how many events may be unacknowledged at once.
        give_up_after: seconds to keep trying to reach the daemon.
        resume_after_loss: whether to continue if the daemon has lost acknowledged events.
        progress: whether to show a progress bar.
    """

    def __init__(
        self, path: str, file: str, *, window: int, give_up_after: float, resume_after_loss: bool, progress: bool
    ) -> None:
        self._source = EventLines(file)
        self.progress = Progress(self._source, shown=progress)
        self._source.form.on_refused = self.progress.refuse
        self.client = CaptureClient(
            path,
            name="ergo-capture send",
            window=window,
            give_up_after=give_up_after,
            resume_after_loss=resume_after_loss,
            on_reject=self.progress.reject,
            on_note=self.progress.note,
            on_refused=self.progress.refused,
            on_reconnect=self.progress.reconnect,
        )

    @property
    def rejected(self) -> int:
        """Return how many events the daemon rejected, or would have rejected."""
        return self.client.rejected + self.progress.unsent_lines

    @property
    def interruption(self) -> IngressReason | None:
        """Return the reference's word for why the input ended early; None if it did not."""
        return self._source.form.interruption

    def run(self, graph: str, session: str | None, labels: dict[str, str]) -> Published:
        """Send all events, close the session, and return what the daemon published.

        Args:
            graph: the graph to open a session of.
            session: the session to resume, in place of a new one.
            labels: labels for the bundle's manifest.

        Raises:
            ErgoCaptureError: the input cannot be read, or the daemon cannot be reached or refuses.
        """
        try:
            return asyncio.run(self._stream(graph, session, labels))
        except KeyboardInterrupt:
            self.progress.interrupted(self.client)
            raise
        finally:
            self.progress.finish()

    async def _stream(self, graph: str, session: str | None, labels: dict[str, str]) -> Published:
        client, progress = self.client, self.progress
        waits = "`ergo-capture status` shows the reason"
        async with self._source, AsyncExitStack() as stack:
            progress.begin(client)
            if self._source.is_typed:
                progress.say("reading events from the terminal, one a line; Ctrl-D ends them")
            with progress.notice(
                f"no connection to '{client.path}' yet; waiting in case the daemon is just starting", after=1
            ):
                await stack.enter_async_context(client)
            with progress.notice(f"the daemon has not opened the session yet; {waits}"):
                await client.open(graph, session=session, labels=labels)
            limit = client.limits.get("max_frame_bytes", MAX_LINE_BYTES)
            too_long = partial(progress.too_long, limit=limit)
            try:
                async for batch in self._source.batches(limit, too_long):
                    await client.send_lines(batch)
                    progress.show()
                    if client.is_interrupted:
                        # Further events would be rejected.
                        break
            except InputRefused:
                if session is None:
                    # The session is empty, and would linger for a client that does not come back.
                    with suppress(ClientError):
                        await client.close(interrupted=True, keep_empty=False)
                raise
            progress.composing()
            with progress.notice(f"the daemon has not published the bundle yet; {waits}"):
                return await client.close(
                    interrupted=self.interruption is not None, keep_empty=False, reason=self.interruption
                )


class Progress:
    """The messages of a run on standard error, with a progress bar if ``shown``."""

    #: How many rejections, and refusals, are printed one by one; the others are only counted.
    MOST_SHOWN = 10
    #: Seconds of waiting after which a notice is printed.
    SILENCE = 5.0

    def __init__(self, source: EventLines, *, shown: bool) -> None:
        #: Rejections by their code.
        self.codes: dict[str, int] = {}
        #: Lines that were not sent because of their length or their place.
        self.unsent_lines = 0
        self._source = source
        self._shown = shown
        self._bar: Bar | None = None

    def begin(self, client: CaptureClient) -> None:
        """Start the bar; the input is open, and its size is known if it has one."""
        if self._shown:
            self._bar = _bar(known=self._source.size is not None)
            self._task = self._bar.add_task("", total=self._source.size, durable=_Durable(client))
            self._bar.start()

    def say(self, sentence: str) -> None:
        """Print a sentence, unless progress is hidden."""
        if self._shown:
            self._print(sentence)

    def show(self) -> None:
        """Update the bar from the position in the input."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._source.taken)

    def composing(self) -> None:
        """Show that everything is sent and the bundle is being composed."""
        if self._bar is not None:
            self._bar.reset(self._task, total=None, description="composing the bundle;")

    def reject(self, reject: Reject) -> None:
        """Count a rejected event, and print it if it is one of the first."""
        self.codes[reject.code] = self.codes.get(reject.code, 0) + 1
        count = sum(self.codes.values())
        if count <= self.MOST_SHOWN:
            place = f" in line {reject.place}" if reject.place else ""
            hint = f"; {reject.hint}" if reject.hint else ""
            self._print(f"rejected {_name_of(reject)}{place}: {reject.code}: {reject.message}{hint}")
        elif count == self.MOST_SHOWN + 1:
            self._print("more were rejected; see the count at the end")

    def refused(self, refused: Refused) -> None:
        """Print an event that was accepted and refused when its turn came, if it is one of the first."""
        if refused.count <= self.MOST_SHOWN:
            self._print(f"refused {refused.event_id!r}: {refused.code}: {refused.message}")
        elif refused.count == self.MOST_SHOWN + 1:
            self._print("more were refused; see the count at the end")

    def refuse(self, line: bytes, number: int, why: str) -> None:
        """Count a line that is not sent because a driver's stream was at its end."""
        self.unsent_lines += 1
        self.reject(Reject(None, Code.BAD_FRAME, why, line, place=number))

    def note(self, note: Note) -> None:
        """Print a note on a probable mistake in an accepted event."""
        place = f"line {note.place}" if note.place else repr(note.event_id)
        hint = f"; {note.hint}" if note.hint else ""
        self._print(f"note on {place}: {note.message}{hint}")

    def too_long(self, line: bytes, number: int, *, limit: int) -> None:
        """Count a line that is not sent because it is longer than the daemon's limit."""
        self.unsent_lines += 1
        self.reject(Reject(None, Code.TOO_LARGE, f"a line may have {limit:,} bytes", line, place=number))

    def reconnect(self, times: int) -> None:
        """Print that the session continues after the daemon was away."""
        self._print(f"the daemon is back; the session goes on (reconnected {counted(times, 'time')})")

    @contextmanager
    def notice(self, sentence: str, after: float = SILENCE) -> Iterator[None]:
        """Print a sentence if the block takes longer than ``after`` seconds, for example because the disk is full."""
        later = asyncio.get_running_loop().call_later(after, self._print, sentence)
        try:
            yield
        finally:
            later.cancel()

    def interrupted(self, client: CaptureClient) -> None:
        """Print how to resume the session after Ctrl-C."""
        if client.session is not None:
            durable = counted(client.accepted, "event")
            self._print(f"interrupted: {durable} durable in session {client.session}; --session resumes it")

    def finish(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()

    def _print(self, text: str) -> None:
        if self._bar is None:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
        else:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)


class _Durable:
    """Formats the number of durable events when the bar is drawn: acknowledgements come while the input is silent."""

    def __init__(self, client: CaptureClient) -> None:
        self._client = client

    def __format__(self, spec: str) -> str:
        return format(self._client.accepted, spec)


def _name_of(reject: Reject) -> str:
    """Return the event's id, or the beginning of its line, with control characters escaped for the terminal."""
    if reject.event_id is not None:
        return repr(reject.event_id)
    line = unwrap_event(reject.line).decode(errors="replace")
    return f"the line {line if len(line) <= _SHOWN else line[:_SHOWN] + '...'!r}"


def _bar(*, known: bool) -> Bar:
    """Return a bar if the input's size is known, else a spinner; it is removed when it stops."""
    from rich.console import Console  # noqa: PLC0415 - only on a terminal
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    doing, durable = TextColumn("{task.description}"), TextColumn("{task.fields[durable]:,} events durable")
    columns = (
        [BarColumn(), TaskProgressColumn(), doing, durable, TimeRemainingColumn(elapsed_when_finished=True)]
        if known
        else [SpinnerColumn("line"), doing, durable]
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
