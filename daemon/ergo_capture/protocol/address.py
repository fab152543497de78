"""Read the address of a Unix socket as users write it."""

from __future__ import annotations

from typing import Final

from ergo_capture.errors import ErgoCaptureError, ExitCode

_URL: Final = "unix:"


class AddressError(ErgoCaptureError):
    """A text is not the address of a Unix socket that has a path."""

    exit_code: int = ExitCode.USAGE


def socket_path(address: str) -> str:
    """Return the path of a socket from a path, ``unix:PATH`` or ``unix:///PATH``.

    Raises:
        AddressError: it is an abstract socket, another kind of socket, or not a path.
    """
    path = address
    if address.startswith(_URL):
        path = address.removeprefix(_URL)
        if path.startswith("//"):
            path = path.removeprefix("//")
            if not path.startswith("/"):
                raise _refusal(address, "a Unix socket has no host", "write unix:///PATH, or only the path")
    elif "://" in address:
        raise _refusal(address, "only Unix sockets are supported", "write the path of the socket")
    if path.startswith(("@", "\0")):
        # An abstract socket has neither owner nor mode: every user of the host could connect.
        raise _refusal(address, "abstract sockets are not supported", "write a path; ./@NAME is a file of that name")
    if not path or "\0" in path:
        raise _refusal(address, "it is not a path", "write unix:///PATH, or only the path")
    return path


def _refusal(address: str, reason: str, hint: str) -> AddressError:
    shown = address.replace("\0", "\\0")
    return AddressError(f"use '{shown}' as a socket: {reason}", op="find socket", path=shown, hint=hint)
