"""The Unix socket for clients: binding it, accepting connections, admitting peers."""

from __future__ import annotations

import asyncio
import errno
import grp
import os
import resource
import socket
import stat
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, Self

import anyio
from anyio import to_thread
from anyio.abc import SocketAttribute, TaskGroup, UNIXSocketStream

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.payloads import Peer
from ergo_capture.protocol.capture import Code, ProtocolError, encode_error
from ergo_capture.server.session.access import Access, peer_name

#: Longest path of a Unix socket, in bytes, without its terminating zero.
MAX_SOCKET_PATH: Final = 107
#: Seconds to wait before accepting again after the system could not.
_RETRY_SECONDS: Final = 0.1
#: Descriptors for everything but clients: the journal, bundles, engines, the loop.
_OWN_DESCRIPTORS: Final = 128
_PEERCRED: Final = struct.Struct("iII")


def raise_descriptor_limit(max_clients: int) -> None:
    """Raise the process's limit of open files, as far as allowed, to one descriptor for each client."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_clients + _OWN_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        # A service manager may forbid the call itself. Clients without a descriptor are logged when they come.
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


# --- the socket's file ---------------------------------------------------------------------------------------------


def bind(path: Path, *, mode: int = 0o660, group: str = "", backlog: int = 128) -> socket.socket:
    """Return a listening socket at ``path``.

    A socket file without a listener was left by a killed process, and is replaced. Any other file at the path stays: it
    may be the socket of a daemon with another state directory, which the lock of this one does not cover.

    Args:
        path: the path of the socket file.
        mode: permissions of the file.
        group: owning group; empty for the process's.
        backlog: how many connections may wait to be accepted.

    Raises:
        ErgoCaptureError: the path is too long or taken, or the socket cannot be created.
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
            f"bind socket '{path}': another process listens there already",
            op="bind socket",
            path=path,
            hint="stop that daemon (`ergo-capture status --socket` says which it is), or choose another --socket",
        )
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with suppress(OSError):
        # Use 0755, not 0750: clients of other groups pass through the directory. If this fails, so does binding, which
        # reports the reason.
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Bind with the narrowest mask and widen it afterwards: no other users may connect at any time.
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
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            reason = "a file that is not a socket is there already"
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
    """Return whether a connection would be accepted, now or later."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            # A full backlog means that there is a listener. In doubt, keep the file.
            return True
        return True


class BoundSocket:
    """A listening socket (``bind``) that removes its file at the end; a context manager.

    Args:
        path: the path of the socket file.
        mode: permissions of the file.
        group: owning group; empty for the process's.
        backlog: how many connections may wait to be accepted.

    Raises:
        ErgoCaptureError: as ``bind``.
    """

    def __init__(self, path: Path, *, mode: int, group: str = "", backlog: int = 128) -> None:
        self.path = path
        self._bind = partial(bind, path, mode=mode, group=group, backlog=backlog)
        self.listening = self._bind()
        self._bound = identity(path)

    def is_lost(self) -> bool:
        """Return whether the file was removed or replaced, so that clients cannot reach the socket."""
        return identity(self.path) != self._bound

    def bind_again(self) -> socket.socket:
        """Return a new listening socket at the path; the caller closes the old one.

        Raises:
            ErgoCaptureError: as ``bind``; another process may listen there by now.
        """
        self.listening = self._bind()
        self._bound = identity(self.path)
        return self.listening

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        unlink_if_same(self.path, self._bound)
        self.listening.close()


def identity(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of the socket file at ``path``; None where there is no socket."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISSOCK(found.st_mode) else None


def unlink_if_same(path: Path, bound: tuple[int, int] | None) -> None:
    """Remove the socket file, unless another one has replaced it."""
    if bound is not None and identity(path) == bound:
        with suppress(OSError):
            path.unlink()


# --- connections ---------------------------------------------------------------------------------------------------


def _peer_of(stream: UNIXSocketStream) -> Peer:
    """Return the process at the other end, as the kernel reports it."""
    raw = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's
    pid, uid, gid = _PEERCRED.unpack(raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return Peer(uid=uid, gid=gid, pid=pid)


class Admission:
    """Admits clients within the limits and on the allow-list, before anything is read from them.

    The limits and the list may be replaced at any time; they apply to the clients that come next.

    Args:
        access: who may connect.
        max_clients: most clients at once.
        max_user_clients: most clients of one user at once.
    """

    def __init__(self, access: Access, *, max_clients: int, max_user_clients: int) -> None:
        self.access = access
        self.max_clients = max_clients
        self.max_user_clients = max_user_clients
        self.clients = 0
        self._by_user: Counter[int] = Counter()

    def enter(self, peer: Peer) -> None:
        """Count a client in; ``leave`` counts it out.

        Raises:
            ProtocolError: the largest number of clients is reached.
        """
        if self.clients >= self.max_clients:
            message = f"{self.max_clients} clients are connected"
            raise ProtocolError(Code.LIMIT, message, "connect again later, or raise limits.max_clients")
        if self._by_user[peer.uid] >= self.max_user_clients:
            message = f"{peer_name(peer)} has {self.max_user_clients} clients connected"
            raise ProtocolError(Code.LIMIT, message, "end some of them, or raise limits.max_user_clients")
        self.clients += 1
        self._by_user[peer.uid] += 1

    def leave(self, peer: Peer) -> None:
        """Count out a client that entered."""
        self.clients -= 1
        self._by_user[peer.uid] -= 1
        if not self._by_user[peer.uid]:
            del self._by_user[peer.uid]

    async def check(self, peer: Peer) -> None:
        """Raise unless the allow-list contains the peer.

        Raises:
            ProtocolError: it does not.
        """
        # Look up in a thread: the group database may be on another host.
        if not self.access.is_open and not await to_thread.run_sync(self.access.admits, peer):
            raise ProtocolError(
                Code.FORBIDDEN,
                f"{peer_name(peer)} may not connect",
                "ask the operator to add you to access.users or access.groups",
            )


class Listener:
    """Accepts clients on one listening socket, and serves each in a task of its own.

    Args:
        listening: bound, listening, non-blocking.
        serve: serves one client to the end, and closes the stream.
        admission: decides who is admitted.
        on_refused: called with each peer that was refused, and the error that it was sent.
        on_accept_failed: called with the reason if the system cannot accept; accepting is tried again.
    """

    def __init__(
        self,
        listening: socket.socket,
        serve: Callable[[UNIXSocketStream, Peer], Awaitable[None]],
        *,
        admission: Admission,
        on_refused: Callable[[Peer, ProtocolError], None],
        on_accept_failed: Callable[[BaseException], None],
    ) -> None:
        self._listening = listening
        self._admission = admission
        self._serve = serve
        self._on_refused = on_refused
        self._on_accept_failed = on_accept_failed
        self._scope = anyio.CancelScope()
        #: Ends accepting on the current socket.
        self._accepting = anyio.CancelScope()
        #: Set once nothing is accepted any more and the last client is gone.
        self.idle = asyncio.Event()

    async def run(self) -> None:
        """Accept until ``stop``, then wait until the clients are gone."""
        async with anyio.create_task_group() as clients:
            with self._scope:
                while True:
                    listening = self._listening
                    with anyio.CancelScope() as self._accepting:
                        await self._accept(await anyio.abc.SocketListener.from_socket(listening), clients)
                    await self._accept_waiting(listening, clients)
        self.idle.set()

    async def _accept(self, listener: anyio.abc.SocketListener, clients: TaskGroup) -> None:
        while True:
            try:
                stream = await listener.accept()
            except anyio.BrokenResourceError as broken:
                # The system is short of descriptors or memory: try again later.
                self._on_accept_failed(broken.__cause__ or broken)
                await anyio.sleep(_RETRY_SECONDS)
                continue
            assert isinstance(stream, UNIXSocketStream)
            self._take(stream, clients)

    async def _accept_waiting(self, listening: socket.socket, clients: TaskGroup) -> None:
        """Accept the clients that wait on a socket that was replaced, and close it."""
        with listening:
            while True:
                try:
                    accepted = listening.accept()[0]
                except OSError:
                    # None is left, or the system cannot accept more; the others connect again.
                    return
                accepted.setblocking(False)
                self._take(await UNIXSocketStream.from_socket(accepted), clients)

    def _take(self, stream: UNIXSocketStream, clients: TaskGroup) -> None:
        peer = _peer_of(stream)
        try:
            self._admission.enter(peer)
        except ProtocolError as error:
            # Refuse without a task: a thousand clients too many must cost almost nothing.
            self._refuse(stream, peer, error)
        else:
            clients.start_soon(self._admit, stream, peer)

    def listen_on(self, listening: socket.socket) -> None:
        """Accept on another socket from now on; the old one is closed."""
        self._listening = listening
        self._accepting.cancel()

    async def _admit(self, stream: UNIXSocketStream, peer: Peer) -> None:
        try:
            await self._admission.check(peer)
            await self._serve(stream, peer)
        except ProtocolError as error:
            self._refuse(stream, peer, error)
        finally:
            self._admission.leave(peer)

    def _refuse(self, stream: UNIXSocketStream, peer: Peer, error: ProtocolError) -> None:
        """Send the error, as far as the socket takes it at once, and close."""
        self._on_refused(peer, error)
        raw = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's
        with suppress(OSError):
            raw.send(encode_error(error), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        raw.close()

    def stop(self) -> None:
        """Accept no more; ``run`` returns when the clients are gone."""
        self._scope.cancel()
