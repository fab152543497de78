"""The address of a socket as users write it."""

from __future__ import annotations

import pytest

from ergo_capture.protocol.address import AddressError, socket_path


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("/run/x.sock", "/run/x.sock"),
        ("x.sock", "x.sock"),
        ("unix:/run/x.sock", "/run/x.sock"),
        ("unix:///run/x.sock", "/run/x.sock"),
        ("unix:x.sock", "x.sock"),
        ("./@x", "./@x"),
    ],
)
def test_paths_and_urls_name_a_path(address: str, path: str) -> None:
    """A URL has one of two forms, with slashes or without."""
    assert socket_path(address) == path


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("@x", "abstract"),
        ("\0x", "abstract"),
        ("unix:@x", "abstract"),
        ("tcp://localhost:80", "only Unix sockets"),
        ("unix://host/x", "has no host"),
        ("unix:", "not a path"),
        ("", "not a path"),
        ("a\0b", "not a path"),
    ],
)
def test_what_is_no_path_is_refused(address: str, reason: str) -> None:
    """The message is printable, and the hint says what to write."""
    with pytest.raises(AddressError, match=reason) as raised:
        socket_path(address)
    assert raised.value.message.isprintable()
    assert raised.value.hint
    assert raised.value.exit_code == 2
