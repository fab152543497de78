"""An HTTP proxy on loopback between a client and an object store, which causes faults when a test says so."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

_ERRORS: Final = {403: "AccessDenied", 500: "InternalError", 503: "SlowDown"}


class Fault(Enum):
    """A fault in the handling of a request."""

    #: It is answered with that status, and not passed on.
    FORBIDDEN = 403
    UNAVAILABLE = 503
    #: The connection is reset before it is passed on.
    RESET = auto()
    #: It is passed on, and the connection is reset in place of the answer.
    LOST_ANSWER = auto()
    #: It is never answered, until the proxy is closed.
    HANG = auto()
    #: A byte of what is written changes on its way.
    FLIPPED_UP = auto()
    #: A byte of what is read changes on its way.
    FLIPPED_DOWN = auto()


@dataclass
class Request:
    """A request that was received."""

    method: str
    #: The path, with the query.
    path: str
    size: int
    fault: Fault | None
    #: The server's status; None where it was not asked or did not answer.
    status: int | None = None

    @property
    def wrote_an_object(self) -> bool:
        """Whether it completed the object of a bundle: by a PUT of the whole, or as the end of an upload in parts."""
        whole = self.method == "PUT" and "partNumber=" not in self.path
        end = self.method == "POST" and re.search(r"[?&]uploadId=", self.path) is not None
        return self.status == 200 and "/objects/" in self.path and (whole or end)


@dataclass
class FaultProxy:
    """The proxy.

    Args:
        port: the port of the server, on loopback.
    """

    port: int
    #: Asked about each request: its method and path.
    fault: Callable[[str, str], Fault | None] = lambda _method, _path: None
    requests: list[Request] = field(default_factory=list)
    server: Any = None
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def endpoint(self) -> str:
        """The URL of the proxy."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def count(self, what: Callable[[Request], bool]) -> int:
        """Return the number of requests of a kind."""
        return sum(map(what, list(self.requests)))


@contextmanager
def fault_proxy(port: int) -> Iterator[FaultProxy]:
    """Run a proxy in threads."""
    proxy = FaultProxy(port)

    class Handler(_Handler):
        owner = proxy

    proxy.server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=proxy.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.closing.set()
        proxy.server.shutdown()
        proxy.server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, _request: Any, _address: Any) -> None:
        """Ignore errors: killed clients break connections."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultProxy

    def log_message(self, *_arguments: Any) -> None:
        """Print nothing."""

    def handle_any(self) -> None:
        proxy, size = self.owner, int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        fault = proxy.fault(self.command, self.path)
        request = Request(self.command, self.path, size, fault)
        proxy.requests.append(request)
        if fault is Fault.HANG:
            proxy.closing.wait()
            return self.reset()
        if fault is Fault.RESET:
            return self.reset()
        if fault in (Fault.FORBIDDEN, Fault.UNAVAILABLE):
            text = f"<Error><Code>{_ERRORS[fault.value]}</Code><Message>by the proxy</Message></Error>".encode()
            return self.answer(fault.value, {"Content-Type": "application/xml"}, text)
        if fault is Fault.FLIPPED_UP and body:
            body = flipped(body)
        try:
            upstream = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60)
            try:
                upstream.request(self.command, self.path, body or None, dict(self.headers.items()))
                reply = upstream.getresponse()
                content = reply.read()
            finally:
                upstream.close()
        except (OSError, http.client.HTTPException):
            return self.reset()
        request.status = reply.status
        if fault is Fault.LOST_ANSWER:
            return self.reset()
        if fault is Fault.FLIPPED_DOWN and content and reply.status < 300:
            content = flipped(content)
        headers = {
            name: value for name, value in reply.getheaders() if name.lower() not in ("connection", "transfer-encoding")
        }
        return self.answer(reply.status, headers, content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815 - the names that the server calls

    def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        if self.command != "HEAD":
            headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
            headers["Content-Length"] = str(len(content))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def reset(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            # Closing with nothing to linger sends RST.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RD)
        with suppress(OSError):
            self.connection.close()


def flipped(content: bytes) -> bytes:
    """Return the content with one bit changed, in its middle."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
