"""Notifications to the service manager."""

from __future__ import annotations

import socket

import pytest
from tests.daemons import short_directory

from ergo_capture.server.ops.systemd import SystemdNotifier


@pytest.mark.timeout(20)
def test_a_service_manager_that_does_not_read_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket is full after some messages; the loop must not wait for it."""
    with short_directory() as place, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(place / "notify"))
        notifier = SystemdNotifier.from_environment()
        for number in range(5000):
            notifier.status(f"message {number}")
        assert manager.recv(100) == b"STATUS=message 0"
