"""Engines that close one direction of the connection, die with it held open, or flood standard error."""

from __future__ import annotations

import json
import sys

import anyio
import pytest
from tests.daemons import event, running_daemon, short_directory
from tests.engine.engines import engine_of, terminations
from tests.server.looks import until

#: Reads one run, closes its input, answers, and stays.
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
async def test_an_engine_that_closes_its_input_is_away_after_its_last_answer(kind: str) -> None:
    """Its last answer counts; further runs fail at once, and not after hang_timeout."""
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


#: Dies, and leaves a process behind that inherited all of its descriptors.
LEAVER = """
import json, os, subprocess, sys
print(json.dumps({"type": "ready", "protocol": "ergo-engine.v1", "runtime_provenance": "rpv1:leaver"}), flush=True)
sys.stdin.readline()
subprocess.Popen(["sleep", "10"], start_new_session=True)
os._exit(3)
"""
#: Says ``ready``, and writes empty lines to its standard error as fast as it can.
BESIDE_ITSELF = """
import json, os, sys, threading

def flood():
    while True:
        os.write(2, b"\\n" * 65536)

print(json.dumps({"type": "ready", "protocol": "ergo-engine.v1", "runtime_provenance": "rpv1:flood"}), flush=True)
threading.Thread(target=flood, daemon=True).start()
sys.stdin.read()
"""


def child(script: str) -> str:
    """Return a configuration whose default graph has this script as its engine, and one more graph."""
    command = json.dumps([sys.executable, "-c", script])
    engine = f'kind = "process"\ncommand = {command}\nback_off = "1m"\nback_off_limit = "1m"\n'
    return f"[graphs.plain]\n[graphs.default.engine]\n{engine}"


async def test_a_dead_engine_is_away_though_another_process_holds_its_pipes() -> None:
    """A child of the engine that outlives it."""
    async with running_daemon(child(LEAVER)) as daemon:
        # Half the life of the process that it left behind.
        with anyio.fail_after(5):
            assert await terminations(daemon, ["a"]) == ["AdapterUnavailable"]
        assert engine_of(daemon.service).counts["lost"] == 1


async def test_an_engine_that_floods_its_standard_error_delays_nobody_else() -> None:
    """Lines above the limit are discarded."""
    async with running_daemon(child(BESIDE_ITSELF)) as daemon, daemon.session(graph="plain") as wire:
        await until(lambda: engine_of(daemon.service).counts["reached"])
        with anyio.fail_after(5):
            for number in range(200):
                await wire.say(event(f"e{number}"))
                await wire.until_ack(number + 1)
