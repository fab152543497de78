"""A daemon and its clients over a real socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.daemons import event, running_daemon, short_directory
from tests.shared import conformance, shared

from ergo_capture import decode_bundle, encode_bundle, first_divergence, rederive
from ergo_capture.cli.commands.simulate import run_scenario
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.scenario import read_scenario
from ergo_capture.server.net.listener import bind, identity, unlink_if_same

LIMITED = '[graphs.default]\nmax_per_window = 1\nrate_window = "10s"\n'


async def test_events_become_a_bundle_that_verifies() -> None:
    """Open, three events, close: the bundle holds them, and its decisions can be derived again."""
    async with running_daemon(LIMITED) as daemon, daemon.session() as wire:
        await wire.say(event("a", 1, payload={"x": 1}), event("b", 2), event("p", 20, "Pump"), {"type": "close"})
        closed = await wire.until("closed")
        bundle = decode_bundle(Path(closed["bundle"]).read_bytes())
        assert [record.event_id for record in bundle.events] == ["a", "b", "p"]
        assert [record.decision.value for record in bundle.decisions] == ["Invoke", "Defer", "Invoke"]
        assert first_divergence(bundle.decisions, rederive(bundle)) is None
        assert (closed["events"], closed["decisions"]) == (3, 3)


async def test_an_acknowledgement_covers_rejected_events() -> None:
    """P2: the count has no gaps: 1 accepted, 2 a duplicate, 3 with a bad payload, 4 accepted."""
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(event("a"), event("a"), event("c", payload=[1]), event("d"))
        frames = await wire.until_ack(4, 4)
        rejects = {f["index"]: f["code"] for f in frames if f["type"] == "reject"}
        assert rejects == {2: "duplicate_event_id", 3: "invalid_payload"}
        await wire.say({"type": "close"})
        assert (await wire.until("closed"))["events"] == 2


async def test_decisions_are_sent_to_a_client_that_asked_for_them() -> None:
    """They are in order, as in the bundle, and are sent once they are durable."""
    async with running_daemon(LIMITED) as daemon, daemon.session(decisions=True) as wire:
        await wire.say(event("a", 1), event("b", 2))
        first, second = await wire.until("decision"), await wire.until("decision")
        assert (first["index"], first["decision"]["decision"]) == (1, "Invoke")
        assert (second["index"], second["decision"]["schedule_at"]) == (2, {"secs": 11, "nanos": 0})


async def test_a_flush_publishes_a_complete_bundle_of_a_running_session() -> None:
    """P3: the snapshot is complete, and the session goes on to a bundle that holds more."""
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(event("a"), {"type": "flush"})
        flushed = await wire.until("flushed")
        assert len(decode_bundle(Path(flushed["bundle"]).read_bytes()).events) == 1
        assert json.loads(Path(flushed["manifest"]).read_bytes())["ended"] == "open"
        await wire.say(event("b"), {"type": "close"})
        closed = await wire.until("closed")
        assert closed["bundle"] == flushed["bundle"]
        assert len(decode_bundle(Path(closed["bundle"]).read_bytes()).events) == 2


async def test_the_manifest_holds_what_the_bundle_cannot() -> None:
    """Counts, hash, peer, times, how it ended, labels."""
    async with running_daemon() as daemon, daemon.session(labels={"run": "7"}) as wire:
        await wire.say(event("a"), {"type": "close"})
        closed = await wire.until("closed")
        manifest = json.loads(Path(closed["manifest"]).read_bytes())
        assert manifest["events"] == manifest["decisions"] == 1
        assert manifest["sha256"] == closed["sha256"]
        assert manifest["ended"] == "complete"
        assert manifest["labels"] == {"run": "7"}
        assert manifest["peer"]["uid"] >= 0


async def test_a_session_without_its_client_ends_as_interrupted() -> None:
    """After session.linger, its bundle is published with the accepted events."""
    async with running_daemon('[session]\nlinger = "50ms"\n') as daemon:
        async with daemon.session() as wire:
            await wire.say(event("a"))
            await wire.until_ack(1)
            session = daemon.service.registry.sessions[wire.opened["session"]]
        await session.over.wait()
        manifest = json.loads(next(daemon.state.rglob("*.manifest.json")).read_bytes())
        assert (manifest["ended"], manifest["events"]) == ("interrupted", 1)


async def test_a_session_without_its_client_and_without_an_event_leaves_no_bundle() -> None:
    """Ctrl-C of a sender that has sent nothing, and a client whose frames were all bad, leave nothing to look at."""
    async with running_daemon('[session]\nlinger = "50ms"\n') as daemon:
        async with daemon.session() as wire:
            session = daemon.service.registry.sessions[wire.opened["session"]]
        await session.over.wait()
        assert list(daemon.state.rglob("*.json")) == []


async def test_a_snapshot_without_an_event_does_not_stay_open() -> None:
    """A flush has published it; its session ends, and so does the bundle."""
    async with running_daemon('[session]\nlinger = "50ms"\n') as daemon:
        async with daemon.session() as wire:
            session = daemon.service.registry.sessions[wire.opened["session"]]
            await session.flush()
        await session.over.wait()
        (manifest,) = (json.loads(path.read_bytes()) for path in daemon.state.rglob("*.manifest.json"))
        assert (manifest["ended"], manifest["events"]) == ("interrupted", 0)


async def test_a_client_resumes_its_session() -> None:
    """It does so within session.linger, and is told how far the session is; duplicates are rejected."""
    async with running_daemon() as daemon:
        async with daemon.session() as wire:
            await wire.say(event("a"), event("b"))
            await wire.until_ack(2, 2)
            name = wire.opened["session"]
        async with daemon.wire() as again:
            opened = await again.open(session=name)
            assert opened["resumed"] is True
            assert (opened["accepted"], opened["last_event_id"]) == (2, "b")
            await again.say(event("b"), event("c"), {"type": "close"})
            assert (await again.until("reject"))["code"] == "duplicate_event_id"
            assert (await again.until("closed"))["events"] == 3


async def test_a_driver_that_never_reads_is_served_whatever_is_refused() -> None:
    """ergo-driver.v0 has no answers, so refusals are counted and not sent."""
    text = '[limits]\nreply_bytes = "1KiB"\nwrite_timeout = "100ms"\n'
    async with running_daemon(text) as daemon, daemon.wire() as wire:
        await wire.say({"type": "hello", "protocol": "ergo-driver.v0"}, event("a"))
        with anyio.fail_after(20):
            for _ in range(20):
                await wire.say(*(event("a") for _ in range(1000)))
            await wire.say(event("b"), {"type": "end"})
        closed = await wire.read()
        assert (closed["type"], closed["events"]) == ("closed", 2)
        assert daemon.service.clients.refusals["duplicate_event_id"] == 20_000


async def test_a_client_of_the_reference_driver_protocol_is_served() -> None:
    """ergo-driver.v0: hello, events, end; it need not read, and the bundle is published."""
    async with running_daemon() as daemon, daemon.wire() as wire:
        await wire.stream.send((shared("real") / "ergo-driver-sample.jsonl").read_bytes())
        frames = await wire.rest()
        assert [frame["type"] for frame in frames] == ["closed"]
        (bundle,) = daemon.bundles()
        assert [e.event_id for e in decode_bundle(bundle.read_bytes()).events] == ["sample-live-evt-1"]


async def test_a_socket_is_not_taken_from_a_daemon_with_another_state_directory() -> None:
    """P12 locks the state directory only: a second daemon with the same socket is refused, and the socket stays."""
    async with running_daemon() as daemon:
        for path in (daemon.socket, daemon.service.components.control_path):
            with pytest.raises(ErgoCaptureError, match=f"bind socket '{path}': another process listens there already"):
                bind(path)
        async with daemon.session() as wire:
            await wire.say(event("a"), {"type": "close"})
            assert (await wire.until("closed"))["events"] == 1


def test_a_file_that_is_not_a_socket_is_not_replaced_by_one(tmp_path: Path) -> None:
    """It is named, and stays."""
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(ErgoCaptureError, match=f"bind socket '{path}': a file that is not a socket is there already"):
        bind(path)
    assert path.read_text() == "mine"


async def test_a_socket_that_replaced_the_daemons_is_not_removed() -> None:
    """The daemon removes the file that it made, not whatever has its name."""
    with short_directory() as place:
        path = place / "capture.sock"
        with bind(path):
            ours = identity(path)
            path.unlink()
            with bind(path):
                unlink_if_same(path, ours)
                assert path.exists()
                unlink_if_same(path, identity(path))
                assert not path.exists()


async def test_concurrent_sessions_are_independent() -> None:
    """Eight at once with the same ids: every bundle holds its own events."""
    async with running_daemon() as daemon:

        async def one(number: int) -> None:
            async with daemon.session() as wire:
                await wire.say(*(event(f"e{i}", number) for i in range(50)), {"type": "close"})
                closed = await wire.until("closed")
                bundle = decode_bundle(Path(closed["bundle"]).read_bytes())
                assert {record.event_time.secs for record in bundle.events} == {number}

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(one, number)
        assert len(daemon.bundles()) == 8


@pytest.mark.parametrize("line", conformance("scenarios.jsonl")[:20], ids=lambda line: line["name"])
async def test_the_daemon_writes_the_bytes_of_the_reference(line: dict[str, Any], tmp_path: Path) -> None:
    """P11: a scenario through the socket gives the same bundle, where the daemon accepts its ids."""
    scenario = line["scenario"]
    ids = [e["event_id"] for e in scenario["events"]]
    if len(set(ids)) != len(ids) or not scenario["graph_id"]:
        pytest.skip("duplicate ids and nameless graphs are the library's only")
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"default": scenario["default"], "schedule": scenario["schedule"]}))
    async with running_daemon(graph_table(scenario, script)) as daemon:
        async with daemon.session(graph=scenario["graph_id"]) as wire:
            for e in scenario["events"]:
                e["payload_utf8"] = as_sent(e["payload_utf8"])
                payload = e["payload_utf8"] or "null"
                head = json.dumps({k: e[k] for k in ("event_id", "kind", "at")}, ensure_ascii=False)[:-1]
                await wire.say(f'{{"type":"event","event":{head},"payload":{payload}}}}}'.encode())
            await wire.say({"type": "close"})
            closed = await wire.until("closed")
        expected = encode_bundle(run_scenario(read_scenario(json.dumps(scenario).encode()))).decode()
        assert Path(closed["bundle"]).read_text(encoding="utf-8") == expected


def as_sent(payload: str | None) -> str | None:
    """Return a payload as a line can carry it: without outer white space, and without newlines."""
    return payload and payload.strip().replace("\n", " ")


def graph_table(scenario: dict[str, Any], script: Path) -> str:
    """Return a scenario's graph as configuration."""
    limits = scenario["constraints"]
    lines = [f"[graphs.{json.dumps(scenario['graph_id'], ensure_ascii=False)}]"]
    for key in ("max_in_flight", "max_per_window", "max_retries"):
        if limits[key] is not None:
            if limits[key] >= 1 << 63:
                pytest.skip("TOML integers end at 2**63")
            lines.append(f"{key} = {limits[key]}")
    spans = [(key, limits[key]) for key in ("rate_window", "deadline") if limits[key] is not None]
    lines += [f'{key} = "{span["secs"]}s{span["nanos"]}ns"' for key, span in spans]
    lines += [f"{key} = {json.dumps(scenario[key])}" for key in ("adapter_provenance", "runtime_provenance")]
    lines.append(f'engine = {{ kind = "scripted", file = {json.dumps(str(script))} }}')
    return "\n".join(lines)
