"""Engines that die, hang or break the protocol: only the runs concerned fail."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import anyio
import pytest
from tests.daemons import running_daemon, short_directory
from tests.engine.engines import (
    captured,
    command_event,
    engine_of,
    listening_puppet,
    process_graph,
    socket_graph,
    terminations,
)
from tests.engine.puppet import BAD

from ergo_capture import RunTermination, decode_bundle
from ergo_capture.client import CaptureClient, ClientError
from ergo_capture.protocol.engine import EngineProtocolError, LineSplitter

BREAKING = [
    ("process", "die", "AdapterUnavailable"),
    ("process", "half", "AdapterUnavailable"),
    *((where, what, "RuntimeError") for where in ("process", "socket") for what in ("garbage", "long", "utf8")),
]


@pytest.mark.parametrize(("where", "what", "ends"), BREAKING)
async def test_an_engine_that_breaks_the_connection_fails_the_pending_run(where: str, what: str, ends: str) -> None:
    """It dies, or sends half a line, an invalid or endless line, or invalid UTF-8; the next run completes."""
    with short_directory() as place, listening_puppet(place / "engine.sock"):
        engine = 'max_line_bytes = "1MiB"'
        text = (
            process_graph(engine=engine) if where == "process" else socket_graph(place / "engine.sock", engine=engine)
        )
        async with running_daemon(text) as daemon:
            assert await terminations(daemon, ["ok.1", what, "ok.2"]) == ["Completed", ends, "Completed"]
            assert engine_of(daemon.service).counts["reached"] == 2


@pytest.mark.parametrize("number", range(len(BAD)))
async def test_an_invalid_answer_fails_its_own_run_only(number: int) -> None:
    """It is Failed(RuntimeError) and counted; the connection stays."""
    async with running_daemon(process_graph()) as daemon:
        assert await terminations(daemon, ["ok.1", f"bad-{number}", "ok.2"]) == [
            "Completed",
            "RuntimeError",
            "Completed",
        ]
        counts = engine_of(daemon.service).counts
        assert (counts["nonsense"], counts["reached"]) == (1, 1)


async def test_answers_in_another_order_are_matched_by_id() -> None:
    """Eight sessions wait for an engine that answers the last request first."""
    async with running_daemon(process_graph()) as daemon:
        ended: list[list[str]] = []

        async def one(event_id: str) -> None:
            ended.append(await terminations(daemon, [event_id]))

        async with anyio.create_task_group() as tasks:
            for number in range(7):
                tasks.start_soon(one, f"hold.{number}")
            with anyio.fail_after(20):
                while engine_of(daemon.service).snapshot()["waiting"] < 7:
                    await anyio.sleep(0.005)
            tasks.start_soon(one, "release")
        assert ended == [["Completed"]] * 8


async def test_unknown_and_duplicate_answers_are_counted_and_dropped() -> None:
    """An id that was never requested, and one that was answered before."""
    async with running_daemon(process_graph()) as daemon:
        assert await terminations(daemon, ["twice", "stray", "ok"]) == ["Completed"] * 3
        assert engine_of(daemon.service).counts["unknown"] == 2


async def test_a_late_answer_is_counted_and_dropped() -> None:
    """The run is TimedOut."""
    async with running_daemon(process_graph(graph='deadline = "50ms"')) as daemon:
        assert await terminations(daemon, ["hold", "release"]) == ["TimedOut", "Completed"]
        assert engine_of(daemon.service).counts["late"] == 1


async def test_an_engine_that_hangs_is_replaced() -> None:
    """After hang_timeout the run is AdapterUnavailable, and another child runs the next one."""
    async with running_daemon(process_graph(engine='hang_timeout = "200ms"')) as daemon:
        assert await terminations(daemon, ["hang", "ok"]) == ["AdapterUnavailable", "Completed"]


@pytest.mark.parametrize(("option", "patience"), [("--silent", "100ms"), ("--garbage", "10s")])
async def test_an_engine_that_never_says_ready_refuses_the_graph_and_is_logged_once(
    option: str, patience: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The client is told why; however often the engine is started, the log says it once."""
    text = process_graph(option, engine=f'start_timeout = "{patience}"')
    async with running_daemon(text) as daemon, CaptureClient(daemon.socket) as client:
        with pytest.raises(ClientError) as caught:
            await client.open("default")
        assert caught.value.code == "no_engine"
        assert "has no engine" in caught.value.message
        assert caught.value.hint == "start the engine, or see the log for the reason why it does not start"
        with anyio.fail_after(20):
            tried = engine_of(daemon.service)
            while tried.trouble == "it has not said `ready` yet":
                await anyio.sleep(0.01)
    assert capsys.readouterr().out.count("engine.away") == 1


async def test_an_engine_may_take_start_timeout_to_say_ready() -> None:
    """Sessions wait for it."""
    async with running_daemon(process_graph("--slow", "0.3")) as daemon:
        assert await terminations(daemon, ["ok"]) == ["Completed"]


async def test_a_provenance_that_is_not_the_configured_one_refuses_the_graph() -> None:
    """The error names both; no session is opened."""
    text = process_graph(graph='runtime_provenance = "rpv1:other"')
    async with running_daemon(text) as daemon, CaptureClient(daemon.socket) as client:
        with pytest.raises(ClientError, match=r"rpv1:other.*rpv1:puppet"):
            await client.open("default")
        assert daemon.bundles() == []


async def test_the_engines_provenance_is_in_the_bundle() -> None:
    """The graph does not configure any."""
    async with running_daemon(process_graph("--provenance", "rpv1:mine")) as daemon:
        assert (await captured(daemon, ["ok"])).runtime_provenance == "rpv1:mine"


async def test_a_recovered_session_is_not_continued_with_another_engine() -> None:
    """Its bundle names one engine for all episodes; with that one it is continued."""
    with short_directory() as place:
        drain = '[shutdown]\ndrain = "10ms"\n'
        first, other = (drain + process_graph("--provenance", f"rpv1:{name}") for name in ("first", "other"))
        async with running_daemon(first, state=place / "state") as daemon, CaptureClient(daemon.socket) as client:
            session = await client.open("default")
            await client.send(command_event("ok.1"))
            await client.drain()
        async with running_daemon(other, state=place / "state") as daemon, CaptureClient(daemon.socket) as client:
            engine = engine_of(daemon.service)
            with anyio.fail_after(20):
                while "rpv1:other" not in engine.trouble:
                    await anyio.sleep(0.01)
            assert "sessions were opened with 'rpv1:first'" in engine.trouble
            await client.open(session=session)
            await client.send(command_event("ok.2"))
            await client.drain()
            assert (client.accepted, daemon.service.registry.sessions[session].decided) == (1, 1)
        async with running_daemon(first, state=place / "state") as daemon, CaptureClient(daemon.socket) as client:
            await client.open(session=session)
            published = await client.close()
        bundle = decode_bundle(Path(published.bundle).read_bytes())
        assert bundle.runtime_provenance == "rpv1:first"
        assert [str(record.termination).split(".")[-1] for record in bundle.decisions] == ["Completed"] * 2


async def test_when_away_fail_fails_runs_at_once() -> None:
    """They fail as AdapterUnavailable."""
    with short_directory() as place:
        engine = 'when_away = "fail"\nback_off = "20s"'.replace("back_off", "back_off_limit")
        text = socket_graph(place / "engine.sock", 'runtime_provenance = "rpv1:puppet"', engine)
        with listening_puppet(place / "engine.sock") as puppet:
            async with running_daemon(text) as daemon, CaptureClient(daemon.socket) as client:
                await client.open("default")
                await client.send(command_event("ok.1"))
                await client.flush()
                puppet.kill()
                puppet.wait()
                with anyio.fail_after(20):
                    while engine_of(daemon.service).snapshot()["up"]:
                        await anyio.sleep(0.01)
                await client.send(command_event("ok.2"))
                bundle = decode_bundle(Path((await client.close()).bundle).read_bytes())
    assert [str(record.termination) for record in bundle.decisions] == [
        "RunTermination.Completed",
        "RunTermination.Failed(ErrKind.AdapterUnavailable)",
    ]


async def test_when_away_wait_holds_runs_until_the_engine_is_back() -> None:
    """The default; the event is durable meanwhile."""
    with short_directory() as place:
        path = place / "engine.sock"
        async with running_daemon(socket_graph(path, engine='back_off_limit = "50ms"')) as daemon:
            with listening_puppet(path):
                async with CaptureClient(daemon.socket) as client:
                    await client.open("default")
                    await client.send(command_event("ok.1"))
                    await client.flush()
                    session = client.session
            with anyio.fail_after(20):
                while engine_of(daemon.service).snapshot()["up"]:
                    await anyio.sleep(0.01)
            path.unlink()
            async with CaptureClient(daemon.socket) as client:
                await client.open("default", session=session)
                await client.send(command_event("ok.2"))
                await client.drain()
                with listening_puppet(path):
                    bundle = decode_bundle(Path((await client.close()).bundle).read_bytes())
    assert {record.termination for record in bundle.decisions} == {RunTermination.Completed}


async def kills(times: int, events: int) -> None:
    """Kill the engine with SIGKILL so many times during a stream of events."""
    text = process_graph(graph="max_retries = 5", engine='back_off_limit = "20ms"')
    async with running_daemon(text) as daemon:
        engine = engine_of(daemon.service)
        streaming = asyncio.create_task(captured(daemon, [f"ok.{n}" for n in range(events)]))
        for _ in range(times):
            with anyio.fail_after(20):
                while not engine.snapshot()["up"] or not getattr(engine, "pid", None):
                    await anyio.sleep(0.001)
            os.kill(engine.pid, signal.SIGKILL)  # type: ignore[attr-defined]
            with anyio.fail_after(20):
                while engine.snapshot()["up"]:
                    await anyio.sleep(0.001)
        bundle = await streaming
        assert [record.event_id for record in bundle.events] == [f"ok.{n}" for n in range(events)]
        ended = {str(record.termination) for record in bundle.decisions}
        assert ended <= {"RunTermination.Completed", "RunTermination.Failed(ErrKind.AdapterUnavailable)"}
        assert "RunTermination.Completed" in ended
        assert engine.counts["lost"] >= times


async def test_no_event_is_lost_when_the_engine_is_killed_repeatedly() -> None:
    """Every run is Completed or AdapterUnavailable, and the bundle verifies."""
    await kills(10, 3_000)


@pytest.mark.soak
async def test_no_event_is_lost_when_the_engine_is_killed_fifty_times() -> None:
    """The long version."""
    await kills(50, 20_000)


def test_an_endless_line_is_discarded() -> None:
    """Memory is bounded by max_line_bytes and one read."""
    lines = LineSplitter(1000)
    for _ in range(10):
        lines.feed(b"x" * 100)
    with pytest.raises(EngineProtocolError, match="longer than 1000 bytes"):
        lines.feed(b"x")
    assert not lines.begun
