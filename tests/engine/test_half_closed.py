"""Engines that close one direction of their connection and keep the other."""

from __future__ import annotations

import json
import sys

import pytest
from tests.daemons import running_daemon, short_directory
from tests.engine.engines import terminations

#: Hears one run, closes its ears, and stays; the last answer comes after that.
DEAF = """
import json, os, socket, sys, time
if len(sys.argv) > 1:
    server = socket.socket(socket.AF_UNIX)
    server.bind(sys.argv[1])
    server.listen()
    line, _ = server.accept()
    heard, said = line.makefile("rb"), line.makefile("wb")
else:
    heard, said = sys.stdin.buffer, sys.stdout.buffer

def say(message):
    said.write(json.dumps(message).encode() + b"\\n")
    said.flush()

say({"type": "ready", "protocol": "ergo-engine.v1", "runtime_provenance": "rpv1:deaf"})
first = json.loads(heard.readline())
line.shutdown(socket.SHUT_RD) if len(sys.argv) > 1 else os.close(0)
time.sleep(0.2)
say({"type": "ran", "id": first["id"], "termination": "Completed"})
time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["process", "socket"])
async def test_an_engine_that_hears_nothing_more_is_away(kind: str) -> None:
    """What it said before counts; what it is asked in vain does not wait for the time of one that hangs."""
    import subprocess

    with short_directory() as place:
        command = [sys.executable, "-c", DEAF]
        where = f"command = {json.dumps(command)}"
        if kind == "socket":
            where = f'path = "{place / "engine.sock"}"'
        text = f'[graphs.default.engine]\nkind = "{kind}"\n{where}\nwhen_away = "fail"\nback_off = "1m"\nback_off_limit = "1m"\n'
        engine = (
            subprocess.Popen(  # noqa: ASYNC220 - nothing else waits
                [*command, str(place / "engine.sock")]
            )
            if kind == "socket"
            else None
        )
        try:
            while engine is not None and not (place / "engine.sock").exists():
                assert engine.poll() is None
            async with running_daemon(text) as daemon:
                assert await terminations(daemon, ["a", "b", "c"]) == ["Completed", *["AdapterUnavailable"] * 2]
        finally:
            if engine is not None:
                engine.kill()
                engine.wait()
