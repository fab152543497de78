"""The Unix socket that clients come in by: binding it, accepting, asking who they are."""

from __future__ import annotations

import grp
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import SocketAttribute, SocketStream, UNIXSocketStream

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.payloads import Peer
from ergo_capture.protocol.capture import ProtocolError, encode_error
from ergo_capture.server.net.admission import Admission

#: Longest path of a Unix socket, in bytes, without its terminating zero.
MAX_SOCKET_PATH: Final = 107
#: How long to wait before accepting again, where the system could not.
_TROUBLE_SECONDS: Final = 0.1
_PEERCRED: Final = struct.Struct("iII")


def bind(path: Path, *, mode: int = 0o660, group: str = "", backlog: int = 128) -> socket.socket:
    """A listening socket at ``path``.

    A socket file that nobody listens on any more was left by a kill, and is replaced. Anything else in its place is
    left alone. Why asked, though the caller holds the lock of the state directory: a daemon with another state
    directory may have been given the same socket, and binding would take it away from under its clients.

    Raises:
        ErgoCaptureError: the path is too long or taken, or the socket cannot be made.
    """
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ErgoCaptureError(
            f"bind socket '{path}': the path is longer than {MAX_SOCKET_PATH} bytes",
            op="bind socket",
            path=path,
            hint="choose a shorter socket.path",
        )
    if path.is_socket() and _is_listened_on(path):
        raise ErgoCaptureError(
            f"bind socket '{path}': somebody listens there already",
            op="bind socket",
            path=path,
            hint="stop that daemon (`ergo-capture status --socket` says which it is), or choose another --socket",
        )
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with suppress(OSError):
        # Why not 0750: clients of other groups pass through it; binding says what is wrong with it, if anything is.
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Why bind under the narrowest mask and widen then: at no time may more people connect than configured.
    mask = os.umask(0o177)
    try:
        if path.is_socket():
            path.unlink()
        listening.bind(os.fspath(path))
        if group:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
        path.chmod(mode)
        listening.listen(backlog)
    except (OSError, KeyError) as error:
        listening.close()
        reason = error.strerror if isinstance(error, OSError) else f"no group {group!r}"
        raise ErgoCaptureError(
            f"bind socket '{path}': {reason}",
            op="bind socket",
            path=path,
            hint="check socket.path, its directory's permissions, and socket.group",
        ) from error
    finally:
        os.umask(mask)
    listening.setblocking(False)
    return listening


def _is_listened_on(path: Path) -> bool:
    """Whether a connection would be taken, now or when its turn comes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
        asking.setblocking(False)
        try:
            asking.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            # Why: a full backlog has somebody behind it; and where it cannot be told, nothing is taken away.
            return True
        return True


@contextmanager
def bound_socket(path: Path, *, mode: int, group: str = "", backlog: int = 128) -> Iterator[socket.socket]:
    """A listening socket at ``path`` for as long as it is wanted; see ``bind``.

    Raises:
        ErgoCaptureError: as ``bind``.
    """
    with bind(path, mode=mode, group=group, backlog=backlog) as listening:
        ours = identity(path)
        try:
            yield listening
        finally:
            unlink_if_ours(path, ours)


def identity(path: Path) -> tuple[int, int] | None:
    """Which file is at ``path``; None where there is no socket."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISSOCK(found.st_mode) else None


def unlink_if_ours(path: Path, ours: tuple[int, int] | None) -> None:
    """Remove the socket file, unless somebody else has put another in its place."""
    if ours is not None and identity(path) == ours:
        with suppress(OSError):
            path.unlink()


def peer_of(stream: UNIXSocketStream | SocketStream) -> Peer | None:
    """Who is at the other end, as the kernel vouches for it; None where it cannot tell."""
    raw = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    pid, uid, gid = _PEERCRED.unpack(raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return Peer(uid=uid, gid=gid, pid=pid)


class Listener:
    """Accepts clients on one listening socket and serves each in a task of its own.

    Args:
        listening: bound, listening, not blocking.
        serve: serves one client to the end; owns closing the stream.
        admission: who is let in.
        on_refused: told who was turned away, and with what answer.
        on_trouble: told why the system gives no more connections; each is tried again a moment later.
    """

    def __init__(
        self,
        listening: socket.socket,
        serve: Callable[[UNIXSocketStream, Peer | None], Awaitable[None]],
        *,
        admission: Admission,
        on_refused: Callable[[Peer | None, ProtocolError], None],
        on_trouble: Callable[[BaseException], None],
    ) -> None:
        self.listening = listening
        self.admission = admission
        #: Connections accepted, those turned away included.
        self.accepted = 0
        self._serve = serve
        self._on_refused = on_refused
        self._on_trouble = on_trouble
        self._scope = anyio.CancelScope()
        #: Set once nothing is accepted any more and the last client is done.
        self.idle = anyio.Event()

    async def run(self) -> None:
        """Accept until ``stop``; clients being served go on in the listener's own task group until they end."""
        async with anyio.create_task_group() as clients:
            with self._scope:
                listener = await anyio.abc.SocketListener.from_socket(self.listening)
                while True:
                    try:
                        stream = await listener.accept()
                    except anyio.BrokenResourceError as broken:
                        # Why no end: the system is short of descriptors or memory, and that passes.
                        self._on_trouble(broken.__cause__ or broken)
                        await anyio.sleep(_TROUBLE_SECONDS)
                        continue
                    assert isinstance(stream, UNIXSocketStream)
                    self.accepted += 1
                    peer = peer_of(stream)
                    try:
                        self.admission.enter(peer)
                    except ProtocolError as error:
                        # Why here and not in a task: a thousand clients too many cost nothing that lasts.
                        self._turn_away(stream, peer, error)
                    else:
                        clients.start_soon(self._take, stream, peer)
        self.idle.set()

    async def _take(self, stream: UNIXSocketStream, peer: Peer | None) -> None:
        try:
            await self.admission.check(peer)
            await self._serve(stream, peer)
        except ProtocolError as error:
            self._turn_away(stream, peer, error)
        finally:
            self.admission.leave(peer)

    def _turn_away(self, stream: UNIXSocketStream, peer: Peer | None, error: ProtocolError) -> None:
        """Say why, as far as the socket takes it at once, and close."""
        self._on_refused(peer, error)
        raw = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's
        with suppress(OSError):
            raw.send(encode_error(error), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        raw.close()

    def stop(self) -> None:
        """Accept no more; ``run`` returns when the clients are done."""
        self._scope.cancel()

    def __repr__(self) -> str:
        return f"<Listener {self.listening.getsockname()!r}, {self.accepted} accepted, {self.admission!r}>"
