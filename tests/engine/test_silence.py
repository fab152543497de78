"""Engines that answer nothing or read nothing: memory and threads are bounded, and they are replaced."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from pathlib import Path

import anyio
import anyio.lowlevel
from tests.daemons import DaemonProcess, command_environment, event, running_daemon, short_directory
from tests.doubles.faulty_storage import FaultyStorage
from tests.engine import scripts
from tests.engine.engines import engine_of, process_graph, python_graph, terminations
from tests.processes import is_alive
from tests.shared import REPOSITORY

from ergo_capture.engine.process import ProcessEngine


async def test_an_engine_that_hangs_is_replaced_even_if_every_run_has_a_short_deadline() -> None:
    """The time without an answer adds up over abandoned runs."""
    text = process_graph(graph='deadline = "60ms"', engine='hang_timeout = "300ms"\nback_off_limit = "20ms"')
    async with running_daemon(text) as daemon:
        ended = await terminations(daemon, ["hang", *(f"ok.{n}" for n in range(100))])
        assert engine_of(daemon.service).counts["lost"] == 1
    assert ended[:2] == ["TimedOut", "TimedOut"]
    assert ended[-1] == "Completed"


async def test_requests_of_abandoned_runs_are_dropped_if_the_engine_reads_nothing() -> None:
    """P9: they are not sent later, and hold no memory."""
    big = {"x": "x" * 10_000}
    async with running_daemon(process_graph(graph='deadline = "20ms"')) as daemon:
        await terminations(daemon, ["hang", *(f"ok.{n}" for n in range(60))], payload=big)
        assert engine_of(daemon.service).snapshot()["unsent_bytes"] == 0


async def test_hanging_calls_take_a_bounded_number_of_threads() -> None:
    """Each run is TimedOut; runs complete again once calls return."""
    text = python_graph("stuck", graph='deadline = "10ms"')
    async with running_daemon(text) as daemon:
        threads_before = threading.active_count()
        engine = daemon.service.registry.graphs["default"].engine
        assert await terminations(daemon, [f"hang.{n}" for n in range(100)]) == ["TimedOut"] * 100
        assert engine.snapshot()["calls"] == 64
        assert threading.active_count() <= threads_before + 64 + 8
        scripts.release()
        with anyio.fail_after(20):
            while engine.snapshot()["calls"]:
                await anyio.sleep(0.005)
        assert await terminations(daemon, ["ok"]) == ["Completed"]


def test_a_hanging_call_does_not_keep_the_daemon_from_stopping() -> None:
    """P10: SIGTERM stops it within its deadline."""
    text = python_graph("obey") + '\n[shutdown]\ndrain = "200ms"\n'
    environment = {"PYTHONPATH": os.pathsep.join([command_environment().get("PYTHONPATH", ""), str(REPOSITORY)])}
    with (
        short_directory() as place,
        DaemonProcess(place, place / "state", config=text, environment=environment) as daemon,
        socket.socket(socket.AF_UNIX) as client,
    ):
        daemon.start()
        client.connect(str(daemon.socket))
        frames = [{"type": "hello", "protocol": "ergo-capture.v1"}, {"type": "open", "graph": "default"}]
        client.sendall(b"".join(json.dumps(frame).encode() + b"\n" for frame in [*frames, event("forever")]))
        heard = b""
        while b'"ack"' not in heard:
            heard += client.recv(4096)
        assert daemon.stop() in (0, 1)


async def test_the_process_group_of_an_engine_is_ended_with_it(tmp_path: Path) -> None:
    """Otherwise each restart would leave a process behind the shell."""
    inner = tmp_path / "inner"
    script = (
        f"sleep 1000 & echo $! > {inner}; "
        r"""echo '{"type":"ready","protocol":"ergo-engine.v1","runtime_provenance":"p"}'; cat > /dev/null"""
    )
    text = f'[graphs.default.engine]\nkind = "process"\ncommand = {json.dumps(["sh", "-c", script])}\n'
    async with running_daemon(text) as daemon:
        with anyio.fail_after(20):
            while not engine_of(daemon.service).snapshot()["up"]:
                await anyio.sleep(0.01)
        child = int(inner.read_text())
        os.kill(child, 0)
    with anyio.fail_after(10):
        while is_alive(child):
            await anyio.sleep(0.01)


async def test_a_stop_does_not_wait_for_an_engine_that_hangs() -> None:
    """P10: within the drain time; the event stays accepted."""
    with anyio.fail_after(20):
        async with running_daemon(process_graph() + '\n[shutdown]\ndrain = "300ms"\n') as daemon:
            async with daemon.session() as wire:
                await wire.say(event("hang"))
                await wire.until_ack(1)
            engine = engine_of(daemon.service)
            assert isinstance(engine, ProcessEngine)
            assert engine.pid is not None
            pid = engine.pid
    assert not is_alive(pid)


async def test_runs_wait_while_a_full_disk_holds_large_effects_in_memory() -> None:
    """P8, P9: memory is bounded, and nothing is lost."""
    storage = FaultyStorage()
    scripts.hold()
    async with running_daemon(python_graph("say_much"), storage=storage) as daemon, daemon.session() as wire:
        await wire.say(*(event(f"e{number}", number) for number in range(40)))
        await wire.until_ack(40)
        storage.fail_next("write", *[errno.ENOSPC] * 100_000)
        scripts.go()
        (session,) = daemon.service.registry.sessions.values()
        held = 0
        with anyio.fail_after(20):
            while held < 16 << 20:
                await anyio.sleep(0.005)
                held = session.decision_log.waiting_bytes
        for _ in range(300):
            await anyio.lowlevel.checkpoint()
        assert session.decision_log.waiting_bytes < 18 << 20
        storage.table.clear()
        await wire.say({"type": "close"})
        closed = await wire.until("closed")
        assert closed["decisions"] == 40


async def test_an_engine_with_an_invalid_command_is_away() -> None:
    """A command with a zero byte; the daemon serves its other graphs."""
    engine = 'kind = "process"\ncommand = ["a\\u0000b"]'
    async with running_daemon(f"[graphs.default.engine]\n{engine}\n[graphs.other]\n") as daemon:
        with anyio.fail_after(20):
            while engine_of(daemon.service).trouble == "it has not said `ready` yet":
                await anyio.sleep(0.005)
        assert await terminations(daemon, ["ok"], graph="other") == ["Completed"]
