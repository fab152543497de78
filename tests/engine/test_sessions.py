"""Engines that are told of sessions, and engines that say which adapter they are for."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.daemons import PATIENCE, Daemon, event, running_daemon, short_directory
from tests.engine.counting import ADAPTER

from ergo_capture.adapter.contract import load_adapter
from ergo_capture.config import Config
from ergo_capture.server.ops.reload import Reloader

PROGRAM = Path(__file__).with_name("noting.py")
TOLD = {"features": ["sessions"]}


@asynccontextmanager
async def noting(ready: dict[str, Any], graph: str = "", text: str = "") -> AsyncIterator[tuple[Daemon, Path]]:
    """Run a daemon whose engine says this of itself; yield the daemon and the file of what the engine read."""
    with short_directory() as place:
        log = place / "notes"
        command = json.dumps([sys.executable, str(PROGRAM), str(log), json.dumps(ready)])
        graph = graph.replace("PLACE", str(place))
        (place / "adapter.yaml").write_text(ADAPTER)
        config = (
            f'{text}[graphs.default]\n{graph}engine = {{ kind = "process", command = {command}, back_off = "1ms" }}\n'
        )
        async with running_daemon(config) as daemon:
            yield daemon, log


async def notes(log: Path, count: int) -> list[dict[str, Any]]:
    """Return what the engine read, once it has read so many messages."""
    with anyio.fail_after(PATIENCE):
        while len(lines := log.read_text().splitlines()) < count:
            await anyio.sleep(0.01)
    return [json.loads(line) for line in lines]


async def test_an_engine_is_told_which_session_and_part_a_run_belongs_to() -> None:
    """It is told of each part before its first run and after its last, and of the kind of each event."""
    async with noting(TOLD, text="[rotation]\nmax_events = 2\n") as (daemon, log):
        async with daemon.session() as one, daemon.session() as other:
            frame = event("a")
            frame["event"]["semantic_kind"] = "price"
            for number, said in enumerate((frame, event("b"), event("c")), 1):
                await one.say(said)
                await one.until_ack(number, number)
            await other.say(event("x"), {"type": "close"})
            await other.until("closed")
            await one.say({"type": "close"})
            await one.until("closed")
            first, second = one.opened["session"], other.opened["session"]
        found = [
            (said["type"], said["session"], said["part"], said.get("event_id"), said.get("semantic_kind"))
            for said in await notes(log, 10)
        ]
        assert found == [
            ("begin", first, 1, None, None),
            ("run", first, 1, "a", "price"),
            ("run", first, 1, "b", None),
            ("end", first, 1, None, None),
            ("begin", first, 2, None, None),
            ("run", first, 2, "c", None),
            ("begin", second, 1, None, None),
            ("run", second, 1, "x", None),
            ("end", second, 1, None, None),
            ("end", first, 2, None, None),
        ]


async def test_an_engine_that_does_not_ask_for_it_is_told_nothing_of_sessions() -> None:
    """It may refuse fields and messages that it does not know."""
    async with noting({}) as (daemon, log), daemon.session() as wire:
        await wire.say(event("a"), {"type": "close"})
        await wire.until("closed")
        (run,) = await notes(log, 1)
        assert set(run) == {"type", "id", "graph_id", "event_id", "kind", "at", "payload", "deadline"}


async def test_an_engine_that_was_restarted_is_told_again() -> None:
    """The state that it kept for the session is gone."""
    async with noting(TOLD, graph="max_retries = 0\n") as (daemon, log), daemon.session() as wire:
        await wire.say(event("a"), event("die"), event("b"), {"type": "close"})
        await wire.until("closed")
        assert [said["type"] for said in await notes(log, 6)] == ["begin", "run", "run", "begin", "run", "end"]


@pytest.mark.parametrize(
    ("field", "graph", "words"),
    [
        ("adapter_provenance", "", ("the adapter 'none'", "its engine is for 'adapter:other@1'")),
        ("adapter_provenance", 'adapter = "PLACE/adapter.yaml"\n', ("adapter:counter@1.0.0;", "'adapter:other@1'")),
        ("egress_provenance", "", ("the egress 'none'", "'adapter:other@1'")),
    ],
)
async def test_an_engine_for_another_adapter_or_egress_is_refused(
    field: str, graph: str, words: tuple[str, str]
) -> None:
    """The error names both."""
    async with noting({field: "adapter:other@1"}, graph) as (daemon, _), daemon.wire() as wire:
        await wire.say({"type": "hello", "protocol": "ergo-capture.v1"}, {"type": "open"})
        error = await wire.until("error")
        assert error["code"] == "no_engine"
        assert error["hint"].startswith("start the right engine, or correct ")
        for word in words:
            assert word in error["message"]


async def test_an_engine_for_the_graphs_adapter_is_taken_until_the_adapter_changes() -> None:
    """A reload may change the adapter; open sessions go on."""
    ready = {"adapter_provenance": load_adapter(ADAPTER).provenance}
    async with noting(ready, 'adapter = "PLACE/adapter.yaml"\n') as (daemon, log), daemon.session() as wire:
        place, config = log.parent, daemon.service.components.config
        (place / "adapter.yaml").write_text(ADAPTER.replace("version: 1.0.0", "version: 1.0.1"))

        def reread() -> Config:
            return config

        daemon.service.reloader = Reloader(daemon.service.components, reread)
        assert (await daemon.ask("reload"))["applied"] == ["graphs.default.adapter"]
        async with daemon.wire() as other:
            await other.say({"type": "hello", "protocol": "ergo-capture.v1"}, {"type": "open"})
            error = await other.until("error")
            assert "adapter:counter@1.0.1;" in error["message"]
            assert "adapter:counter@1.0.0;" in error["message"]
        frame = event("a", payload={"n": 1})
        frame["event"]["semantic_kind"] = "add"
        await wire.say(frame, {"type": "close"})
        assert (await wire.until("closed"))["decisions"] == 1
