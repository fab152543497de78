"""Other users for tests that run as root: a client in a child process that changes its user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

#: A user and a group that have nothing to do with the daemon; ids that every Linux has.
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes another user")

_CLIENT = """
import os, socket, sys
path, uid, gid, groups = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
os.setgroups([int(group) for group in groups.split(",") if group])
os.setgid(gid)
os.setuid(uid)
client = socket.socket(socket.AF_UNIX)
try:
    client.connect(path)
except OSError as error:
    sys.exit(f"connect: {error.strerror}")
try:
    client.sendall(sys.stdin.buffer.read())
    client.shutdown(socket.SHUT_WR)
except OSError:
    pass
try:
    while data := client.recv(65536):
        sys.stdout.buffer.write(data)
except ConnectionResetError:
    pass
"""


def talk_as(socket: Path, *frames: dict[str, Any], uid: int = NOBODY, gid: int = NOBODY) -> list[dict[str, Any]]:
    """Say the frames as another user, and return every answer.

    Raises:
        PermissionError: that user may not even connect.
    """
    said = b"".join(json.dumps(frame).encode() + b"\n" for frame in frames)
    command = [sys.executable, "-c", _CLIENT, str(socket), str(uid), str(gid), ""]
    done = subprocess.run(command, input=said, capture_output=True, timeout=30, check=False)
    if done.returncode:
        raise PermissionError(done.stderr.decode().strip())
    return [json.loads(line) for line in done.stdout.splitlines()]
