"""The way to one session of the daemon: reached first, opened, and reached again when it breaks."""

from __future__ import annotations

import random
from typing import Any, Final

import anyio

from ergo_capture.client.frames import ClientError, Opened, read_as
from ergo_capture.client.wire import LOST, Wire

_FIRST_DELAY: Final = 0.05
_LONGEST_DELAY: Final = 2.0
#: Seconds that a first connection waits for a daemon at the most. Why not the whole patience: most often nobody started
#: one, and whoever forgot wants to hear so soon.
_FIRST_PATIENCE: Final = 5.0


class Uplink:
    """A connection that is made anew with the same session on it.

    Args:
        path: the daemon's socket.
        name: what the daemon's logs call this client.
        patience: seconds to go on trying to reach the daemon again; zero to not try at all.
    """

    def __init__(self, path: str, name: str, patience: float) -> None:
        self.path = path
        self.patience = patience
        #: The connection, where there is one.
        self.wire: Wire | None = None
        #: The session's id, once it was opened.
        self.session: str | None = None
        #: Id of the last event that was durable when the session was opened or resumed.
        self.last_event_id: str | None = None
        #: What the daemon takes: bytes and numbers, by name.
        self.limits: dict[str, int] = {}
        self._name = name
        self._request: dict[str, Any] | None = None

    @property
    def is_asked_for(self) -> bool:
        """Whether a session was opened, or is being opened."""
        return self._request is not None

    async def connect(self) -> None:
        """Connect; where the daemon is not there, it may just be starting.

        Raises:
            ClientError: ``unreachable``, or what the daemon says against it.
        """
        began, delay = anyio.current_time(), _FIRST_DELAY
        while True:
            try:
                return await self._connect()
            except ClientError as error:
                waited = anyio.current_time() - began
                if error.code != "unreachable" or waited >= min(self.patience, _FIRST_PATIENCE):
                    raise
            await anyio.sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY)

    async def open(self, request: dict[str, Any]) -> Opened:
        """Open or resume the session. Where that is refused, another may be asked for.

        Raises:
            ClientError: refused, or the daemon cannot be reached any more.
        """
        self._request = request
        try:
            if self.wire is None:
                await self._connect()
            try:
                return await self._ask()
            except LOST:
                # The daemon went between its welcome and its answer. A session it opened meanwhile lingers and ends.
                return await self.come_back()
        except BaseException:
            self._request = None
            # Why: the daemon takes one open on a connection, and an answer may still be on its way.
            with anyio.CancelScope(shield=True):
                await self.hang_up()
            raise

    async def come_back(self) -> Opened:
        """Connect and open again, as often as it takes within the patience.

        Raises:
            ClientError: as ``open``.
        """
        await self.hang_up()
        delay = _FIRST_DELAY
        with anyio.move_on_after(self.patience):
            while True:
                # Why jitter: the clients of a daemon that was restarted should not all come at once.
                await anyio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - no secret hangs on it
                delay = min(delay * 2, _LONGEST_DELAY)
                try:
                    await self._connect()
                    return await self._ask()
                except ClientError as error:
                    if error.code not in {"unreachable", "session_busy", "shutting_down"}:
                        raise
                except LOST:
                    pass
                await self.hang_up()
        raise ClientError(
            "unreachable",
            f"the daemon at '{self.path}' did not come back within {self.patience:g} s",
            "what was acknowledged is safe; start the daemon and resume the session with --session",
        )

    async def hang_up(self) -> None:
        """Close the connection, at once."""
        wire, self.wire = self.wire, None
        if wire is not None:
            await wire.hang_up()

    async def _connect(self) -> None:
        self.wire = await Wire.connect(self.path, self._name)
        self.limits = self.wire.limits

    async def _ask(self) -> Opened:
        assert self.wire is not None
        assert self._request is not None
        await self.wire.say({"type": "open", **self._request})
        opened = read_as(Opened, await self.wire.read_frame())
        self.session = opened.session
        self.last_event_id = opened.last_event_id
        self._request["session"] = self.session
        return opened

    def __repr__(self) -> str:
        return f"<Uplink to {self.path!r}, {self.session or 'no session'}{'' if self.wire else ', not connected'}>"
