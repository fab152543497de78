"""Who gets in, and how many at once: asked for each connection before anything is read from it."""

from __future__ import annotations

import resource
from collections import Counter
from contextlib import suppress
from typing import Final

from anyio import to_thread

from ergo_capture.journal.payloads import Peer
from ergo_capture.protocol.capture import Code, ProtocolError
from ergo_capture.server.session.access import Access, who

#: Descriptors for everything that is not a client: journal, bundles, engines, the loop's own.
_OWN_DESCRIPTORS: Final = 128


def make_room(max_clients: int) -> None:
    """Raise the process's limit of open files, as far as it may be, to have a descriptor for each client."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_clients + _OWN_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        # Why suppressed: a service manager may forbid the call itself. Clients without a descriptor are logged as such.
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class Admission:
    """Counts clients, and turns away those above the limits or not on the list.

    The limits and the list may be replaced while clients are there: it is those who come next that they are for.
    """

    def __init__(self, access: Access, *, max_clients: int, max_user_clients: int) -> None:
        self.access = access
        self.max_clients = max_clients
        self.max_user_clients = max_user_clients
        self.clients = 0
        self.by_user: Counter[int | None] = Counter()

    def enter(self, peer: Peer | None) -> None:
        """Count a client in; ``leave`` counts it out.

        Raises:
            ProtocolError: there are as many as may be.
        """
        user = None if peer is None else peer.uid
        if self.clients >= self.max_clients:
            message = f"{self.max_clients} clients are connected"
            raise ProtocolError(Code.LIMIT, message, "connect again later, or raise limits.max_clients")
        if self.by_user[user] >= self.max_user_clients:
            message = f"{who(peer)} has {self.max_user_clients} clients connected"
            raise ProtocolError(Code.LIMIT, message, "end some of them, or raise limits.max_user_clients")
        self.clients += 1
        self.by_user[user] += 1

    def leave(self, peer: Peer | None) -> None:
        """A client that entered is gone."""
        user = None if peer is None else peer.uid
        self.clients -= 1
        self.by_user[user] -= 1
        if not self.by_user[user]:
            del self.by_user[user]

    async def check(self, peer: Peer | None) -> None:
        """Look whether the peer is on the list.

        Raises:
            ProtocolError: it is not.
        """
        # Why in a thread: the group database may be on another host.
        if not self.access.is_open and not await to_thread.run_sync(self.access.lets_in, peer):
            raise ProtocolError(
                Code.FORBIDDEN,
                f"{who(peer)} may not connect",
                "ask the operator to add you to access.users or access.groups",
            )

    def __repr__(self) -> str:
        return f"<Admission {self.clients} of {self.max_clients} clients, {len(self.by_user)} users>"
