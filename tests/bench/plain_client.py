"""A client as somebody else writes one: thirty lines that refill the window as each acknowledgement comes."""

from __future__ import annotations

import json
import socket
from pathlib import Path

HELLO = b'{"type":"hello","protocol":"ergo-capture.v1"}\n{"type":"open","graph":"default"}\n'
LINE = b'{"type":"event","event":{"event_id":"ev-%012d","kind":"DataAvailable","at":{"secs":%d,"nanos":0},"payload":{"pad":"%b"}}}\n'


def lines_of(count: int, payload_bytes: int) -> list[bytes]:
    """Return event lines with payloads of that size."""
    pad = b"x" * (payload_bytes - len('{"pad":""}'))
    return [LINE % (number, number, pad) for number in range(count)]


def send_all(path: Path, window: int, lines: list[bytes]) -> None:
    """Send lines in a new session, and return when all are acknowledged."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(HELLO)
        sent = accepted = 0
        opened, rest = False, b""
        while accepted < len(lines):
            room = min(accepted + window, len(lines))
            if opened and sent < room:
                connection.sendall(b"".join(lines[sent:room]))
                sent = room
            *answers, rest = (rest + connection.recv(65536)).split(b"\n")
            for answer in map(json.loads, answers):
                assert answer["type"] in {"welcome", "opened", "ack"}, answer
                opened |= answer["type"] == "opened"
                accepted = answer["accepted"] if answer["type"] == "ack" else accepted
