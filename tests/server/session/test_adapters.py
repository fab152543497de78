"""Sessions of graphs with an adapter: admission, decisions, refusals, and left-over events."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.daemons import Daemon, Wire, event, running_daemon, short_directory
from tests.engine.counting import ADAPTER

from ergo_capture import CaptureBundle, decode_bundle
from ergo_capture.server.ops.reload import Reloader

ENGINE = 'engine = { kind = "python", callable = "tests.engine.counting:add" }\n'


@asynccontextmanager
async def daemon_with(graph: str = ENGINE, text: str = "", state: Path | None = None) -> AsyncIterator[Daemon]:
    """Run a daemon whose default graph has the adapter of ``counting.py``."""
    with short_directory() as place:
        (place / "adapter.yaml").write_text(ADAPTER)
        config = f'[graphs.default]\nadapter = "{place}/adapter.yaml"\n{graph}{text}'
        async with running_daemon(config, state) as daemon:
            yield daemon


def add(event_id: str, n: Any = 1, kind: str | None = "add", **fields: Any) -> dict[str, Any]:
    """Return an event frame that adds a number."""
    frame = event(event_id, payload={"n": n, **fields})
    if kind is not None:
        frame["event"]["semantic_kind"] = kind
    return frame


async def close(wire: Wire) -> tuple[dict[str, Any], CaptureBundle]:
    """Close the session; return ``closed`` and its bundle."""
    await wire.say({"type": "close"})
    closed = await wire.until("closed")
    return closed, decode_bundle(Path(closed["bundle"]).read_bytes())


def payloads(bundle: CaptureBundle) -> list[bytes]:
    """Return the payloads of a bundle's events."""
    return [record.payload for record in bundle.events]


async def test_what_no_merge_can_mend_is_rejected_and_the_session_goes_on() -> None:
    """The rejection has the path in the payload and the rule; the id stays free."""
    async with daemon_with() as daemon, daemon.session() as wire:
        await wire.say(
            add("a", kind=None),
            add("b", kind="nothing"),
            event("c") | {"event": event("c")["event"] | {"semantic_kind": "add"}},
            add("d", -1, kind="plain"),
            add("d", 1, kind="plain"),
        )
        frames = await wire.until_ack(5, 5)
        rejects = [frame for frame in frames if frame["type"] == "reject"]
        assert [(frame["index"], frame["code"]) for frame in rejects] == [
            (number, "schema_violation") for number in (1, 2, 3, 4)
        ]
        assert "semantic_kind is required" in rejects[0]["message"]
        assert "unknown semantic event kind 'nothing'" in rejects[1]["message"]
        assert rejects[1]["hint"] == "name one of the adapter's event kinds: 'add', 'plain'"
        assert "payload is required" in rejects[2]["message"]
        assert rejects[3]["message"].endswith("(at $.n, by 'minimum')")
        closed, _ = await close(wire)
        assert (closed["events"], closed["decisions"], closed["refused"]) == (1, 1, 0)


async def test_what_effects_wrote_is_merged_into_later_payloads() -> None:
    """The bundle holds the payload as the graph gets it; sent values take precedence over stored ones."""
    async with daemon_with() as daemon, daemon.session() as wire:
        await wire.say(
            add("a", 1), add("b", 2), add("c", 3), add("d", 4, total=0.5), add("e"), add("f", 0, kind="plain")
        )
        await wire.until_ack(6, 6)
        _, bundle = await close(wire)
        assert payloads(bundle) == [
            b'{"n":1}',
            b'{"n":2,"total":1.0}',
            b'{"n":3,"total":3.0}',
            b'{"n":4,"total":0.5}',
            b'{"n":1,"total":4.5}',
            b'{"n":0}',
        ]
        assert bundle.adapter_provenance.startswith("adapter:counter@1.0.0;sha256:")


async def test_episodes_run_one_after_the_other_whatever_the_pipeline() -> None:
    """Each is merged with what the previous one wrote."""
    engine = 'engine = { kind = "python", callable = "tests.engine.counting:add", pipeline = 8 }\n'
    async with daemon_with(engine) as daemon, daemon.session() as wire:
        await wire.say({"type": "events", "events": [add(f"e{number}")["event"] for number in range(20)]})
        _, bundle = await close(wire)
        assert payloads(bundle)[-1] == b'{"n":1,"total":19.0}'


async def test_a_payload_that_the_store_breaks_is_refused_and_the_session_goes_on() -> None:
    """The client hears of it once it is durable; the event takes no episode."""
    async with daemon_with() as daemon, daemon.session(decisions=True) as wire:
        await wire.say(add("a", 101), add("b", 1), add("c", 1, total=1), add("d", 1))
        frames = await wire.until_ack(4, 4)
        (refused,) = (frame for frame in frames if frame["type"] == "refused")
        assert refused["message"].endswith("(at $.total, by 'maximum')")
        assert refused | {"message": ""} == {
            "type": "refused",
            "index": 2,
            "event_id": "b",
            "code": "schema_violation",
            "message": "",
            "count": 1,
        }
        decisions = [frame for frame in frames if frame["type"] == "decision"]
        assert [(frame["index"], frame["decision"]["episode_id"]) for frame in decisions] == [(1, 0), (3, 1), (4, 2)]
        closed, bundle = await close(wire)
        assert (closed["events"], closed["decisions"], closed["refused"]) == (4, 3, 1)
        assert [record.event_id for record in bundle.events] == ["a", "c", "d"]


async def test_the_status_counts_refused_events_among_the_decided() -> None:
    """Their turn has come. While the run goes on, nothing is left over."""
    async with daemon_with() as daemon, daemon.session() as wire:
        await wire.say(add("a", 101), add("b", 1))
        await wire.until_ack(2, 2)
        (session,) = (await daemon.ask("status"))["status"]["running"]["sessions"]
        assert (session["accepted"], session["decided"], session["refused"], session["left_over"]) == (2, 2, 1, 0)
        assert session["interrupted_by"] == ""


async def test_a_refusal_is_said_again_after_a_resume() -> None:
    """The id of the event stays taken."""
    async with daemon_with() as daemon:
        async with daemon.session() as wire:
            await wire.say(add("a", 101), add("b", 1))
            await wire.until_ack(2, 2)
            session = wire.opened["session"]
        async with daemon.session(session=session) as wire:
            assert (await wire.until("refused"))["event_id"] == "b"
            await wire.say(add("b", 1))
            assert (await wire.until("reject"))["code"] == "duplicate_event_id"


async def test_effects_that_the_adapter_refuses_are_a_failed_run() -> None:
    """The engine is at fault; the effects are neither stored nor recorded."""
    async with daemon_with() as daemon, daemon.session(decisions=True) as wire:
        await wire.say(add("a", 5), add("undeclared.b", 1), add("c", 1))
        frames = await wire.until_ack(3, 3)
        decisions = [frame["decision"] for frame in frames if frame["type"] == "decision"]
        assert [decision["termination"] for decision in decisions] == [
            "Completed",
            {"Failed": "RuntimeError"},
            "Completed",
        ]
        assert decisions[1]["effects"] == []
        _, bundle = await close(wire)
        assert payloads(bundle)[2] == b'{"n":1,"total":5.0}'


async def test_a_client_that_takes_no_notices_gets_none() -> None:
    """One of 0.1.0 takes an unknown frame for the answer to its next request; ``closed`` has the counts."""
    async with daemon_with(text='[limits]\ncontext_bytes = "1KiB"\n') as daemon:
        async with daemon.session(notices=False) as wire:
            events = [add("a", 101), add("b", 1), add("long.c", 1, total=1), add("d", 1)]
            await wire.say({"type": "events", "events": [each["event"] | {"other": 1} for each in events]})
            await wire.say({"type": "close"})
            closed = [frame for frame in await wire.rest() if frame["type"] != "ack"]
        assert [(frame["type"], frame["refused"], frame["left_over"]) for frame in closed] == [("closed", 1, 1)]


async def test_a_failed_episode_writes_nothing() -> None:
    """The reference's does not either."""
    async with daemon_with() as daemon, daemon.session() as wire:
        await wire.say(add("a", 5), add("fail.b", 1), add("c", 1))
        await wire.until_ack(3, 3)
        _, bundle = await close(wire)
        assert payloads(bundle)[1:] == [b'{"n":1,"total":5.0}'] * 2


async def test_a_store_beyond_its_bound_interrupts_the_session_and_the_rest_is_left_over() -> None:
    """The client hears which events are left over, later ones are rejected, and the bundle holds the decided ones."""
    async with daemon_with(text='[limits]\ncontext_bytes = "1KiB"\n') as daemon, daemon.session() as wire:
        await wire.say({"type": "events", "events": [add(name)["event"] for name in ("a", "long.b", "c", "d")]})
        left = await wire.until("left_over")
        assert (left["from_index"], left["event_id"], left["count"], left["reason"]) == (3, "c", 2, "context_full")
        assert "its limit is 1,024" in left["message"]
        await wire.say(add("e"))
        assert (await wire.until("reject"))["code"] == "run_interrupted"
        closed, bundle = await close(wire)
        assert (closed["events"], closed["decisions"], closed["left_over"]) == (4, 2, 2)
        assert [record.event_id for record in bundle.events] == ["a", "long.b"]


async def test_what_is_not_decided_is_logged_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """The counters are by graph, and exist from the start."""
    async with daemon_with(text='[limits]\ncontext_bytes = "1KiB"\n') as daemon:
        assert 'left_over_events_total{graph="default"' in (await daemon.ask("metrics"))["text"]
        async with daemon.session() as wire:
            events = [add("a", 101), add("b"), add("long.c", total=0), add("d"), add("e")]
            await wire.say({"type": "events", "events": [each["event"] for each in events]}, {"type": "close"})
            await wire.until("closed")
        text = (await daemon.ask("metrics"))["text"]
        for name, count in (("refused_events", 1), ("left_over_events", 2), ("interrupted_runs", 1)):
            assert re.search(rf'^ergo_capture_{name}_total{{graph="default".*}} {count}\.0$', text, re.MULTILINE), name
    logged = capsys.readouterr().out
    assert re.search(r"event\.refused .*event_id=b ", logged)
    assert re.search(r"session\.interrupted .*reason=context_full", logged)


async def test_a_session_that_is_interrupted_while_it_ends_says_so() -> None:
    """Its client had asked for the end before."""
    async with daemon_with(text='[limits]\ncontext_bytes = "1KiB"\n') as daemon, daemon.session() as wire:
        events = [add(name)["event"] for name in ("a", "long.b", "c")]
        await wire.say({"type": "events", "events": events}, {"type": "close"})
        closed = await wire.until("closed")
        assert (closed["reason"], closed["left_over"]) == ("context_full", 1)
        assert json.loads(Path(closed["manifest"]).read_bytes())["ended"] == "interrupted"


async def test_a_session_keeps_the_adapter_that_it_was_opened_with() -> None:
    """A reload applies to sessions that are opened later."""
    async with daemon_with() as daemon:
        async with daemon.session() as wire:
            config = daemon.service.components.config
            path = Path(config.graphs["default"].adapter)
            path.write_text(ADAPTER.replace("maximum: 100", "maximum: 1").replace("minimum: 0", "minimum: 5"))
            daemon.service.reloader = Reloader(daemon.service.components, lambda: config)
            assert (await daemon.ask("reload"))["applied"] == ["graphs.default.adapter"]
            await wire.say(add("a", 50), add("b", 1), add("c", 2, kind="plain"))
            await wire.until_ack(3, 3)
            _, bundle = await close(wire)
            assert payloads(bundle) == [b'{"n":50}', b'{"n":1,"total":50.0}', b'{"n":2}']
        async with daemon.session() as wire:
            await wire.say(add("a", 50), add("b", 1), add("c", 2, kind="plain"))
            frames = await wire.until_ack(3, 3)
            assert [frame["type"] for frame in frames if frame["type"] in ("reject", "refused")] == [
                "reject",
                "refused",
            ]


async def test_a_flush_of_an_interrupted_session_is_answered() -> None:
    """The answer names its last bundle, because nothing more will be decided."""
    async with daemon_with(text='[limits]\ncontext_bytes = "1KiB"\n') as daemon, daemon.session() as wire:
        await wire.say(
            {"type": "events", "events": [add(name)["event"] for name in ("long.a", "b")]}, {"type": "flush"}
        )
        flushed = await wire.until("flushed")
        closed, _ = await close(wire)
        assert flushed["bundle"] == closed["bundle"]


async def test_payloads_are_canonical_where_that_is_configured() -> None:
    """There is no adapter, and semantic kinds are not required."""
    async with running_daemon('[graphs.default]\npayload = "canonical"\n') as daemon, daemon.session() as wire:
        await wire.say(b'{"type":"event","event":{"event_id":"a","kind":"Command","at":{"secs":0,"nanos":0},'
                       b'"payload":{ "b": 1e2, "a": 1.3000000000000003 }}}')  # fmt: skip
        await wire.say(event("b"))
        await wire.until_ack(2, 2)
        _, bundle = await close(wire)
        assert payloads(bundle) == [b'{"a":1.3000000000000005,"b":100.0}', b""]


async def test_a_session_that_is_decided_elsewhere_is_checked_at_admission_only() -> None:
    """Its payloads are captured as they were sent."""
    async with daemon_with() as daemon, daemon.session(decided_by="fixed") as wire:
        await wire.say(add("a", kind="nothing"), add("b", -1, kind="plain"), add("c", 101), add("d", 1, total=500))
        frames = await wire.until_ack(4, 4)
        assert [frame["event_id"] for frame in frames if frame["type"] == "reject"] == ["a", "b"]
        _, bundle = await close(wire)
        assert payloads(bundle) == [b'{"n": 101}', b'{"n": 1, "total": 500}']


async def test_deciding_many_events_gives_others_a_turn() -> None:
    """A second client is answered while the first one's events are decided."""
    fixed = 'engine = "fixed"\n'
    async with daemon_with(fixed) as daemon, daemon.session() as busy, daemon.session() as other:
        await busy.say({"type": "events", "events": [add(f"e{number}")["event"] for number in range(5000)]})
        await other.say(add("x"))
        await other.until_ack(1, 1)
        await busy.until_ack(5000, 5000)
        await asyncio.sleep(0)
