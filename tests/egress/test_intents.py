"""``ergo-capture intents``."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import anyio
from tests.adapter.cases import graph_id
from tests.daemons import command, running_daemon
from tests.egress.channels import heard
from tests.egress.hosted import ROWS, TWO, configuration, event_lines, good, intents_of


def captured(name: str, place: Path) -> str:
    """Return the file of the reference's capture in a row."""
    path = place / "run.capture.json"
    path.write_text(ROWS[name]["capture"])
    return str(path)


def told(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code of the command and its JSON."""
    ran: subprocess.CompletedProcess[str] = command("intents", *arguments, "--json")
    assert ran.stdout, ran.stderr
    return ran.returncode, json.loads(ran.stdout)


def test_a_run_whose_intents_are_acknowledged(tmp_path: Path) -> None:
    """Each intent has its channel and the channel's reference."""
    code, found = told(captured("ok-two-kinds-two-channels", tmp_path))
    assert (code, found["expected"], found["acknowledged"], found["unacknowledged"]) == (0, 6, 6, 0)
    assert [intent["intent_id"] for intent in found["intents"]] == intents_of(TWO)
    first, second = found["intents"][:2]
    assert (first["event_id"], first["kind"], first["channel"], first["egress_ref"]) == ("e1", "alpha", "a", None)
    assert (second["event_id"], second["kind"], second["channel"], second["egress_ref"]) == ("e1", "beta", "b", "b1")


def test_a_run_that_an_intent_interrupted(tmp_path: Path) -> None:
    """The exit code is 3, and the reason is printed."""
    ran = command("intents", captured("second-of-two-intents-rejected", tmp_path))
    assert ran.returncode == 3
    *_, acknowledged, missing = ran.stdout.splitlines()
    assert "4 intents, 1 without an ack" in ran.stdout
    assert acknowledged.endswith("acknowledged by a")
    assert "NOT acknowledged: egress dispatch failed: protocol violation on channel 'b'" in missing


def test_a_run_without_intents(tmp_path: Path) -> None:
    """No intents are listed, and the exit code is 0."""
    code, found = told(captured("ok-no-intents-plain-ergo", tmp_path))
    assert (code, found["expected"], found["intents"]) == (0, 0, [])


async def test_an_open_session_whose_channel_does_not_answer(tmp_path: Path) -> None:
    """The intent that is being sent is unacknowledged; the one whose ack is in the journal is not."""
    never = good(b=[[{"sleep_ms": 3_600_000}]])
    text = configuration(TWO, tmp_path, never).replace("500ms", "1h")
    async with (
        running_daemon(text + '[shutdown]\ndrain = "1s"\n') as daemon,
        daemon.session(graph=graph_id(TWO)) as wire,
    ):
        await wire.say(event_lines(TWO)[0])
        with anyio.fail_after(20):
            while not heard(tmp_path, "b"):
                await anyio.sleep(0.005)
        session = wire.opened["session"]
        waits = (await daemon.ask("status"))["status"]["running"]["shutdown_waits_for"]
        code, found = await anyio.to_thread.run_sync(told, session, "--state-dir", str(daemon.state))
    assert waits == [f"session {session}: 1 event to be decided, egress channel 'b' to acknowledge an intent"]
    assert (code, found["acknowledged"], found["unacknowledged"]) == (3, 1, 1)
    assert [(intent["event_id"], intent["acknowledged"]) for intent in found["intents"]] == [
        ("e1", True),
        ("e1", False),
    ]
