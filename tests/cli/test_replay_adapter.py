"""``ergo-capture replay --adapter``: the store rebuilt, effects and merged payloads compared."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.cli.adapted import ADAPTER, EVENTS, Busy, run, two_parts, with_effect, with_payload, write

from ergo_capture.cli import app
from ergo_capture.kernel.effects import ActionEffect, EffectWrite, Value

Told = Callable[..., list[dict[str, Any]]]
COUNT = "python:tests.cli.adapted:count"
MISCOUNT = "python:tests.cli.adapted:miscount"
WAIT = "python:tests.cli.adapted:wait"


@pytest.fixture
def told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Told:
    """Replay bundles with the adapter; return the JSON of each."""

    def replay(
        code: int, *bundles: Path, engine: str = COUNT, text: str = ADAPTER, options: tuple[str, ...] = ()
    ) -> Any:
        adapter = tmp_path / "adapter.yaml"
        adapter.write_text(text)
        arguments = ["replay", "--json", "--adapter", str(adapter), "--engine", engine, *options]
        assert app.run([*arguments, *map(str, bundles)]) == code, capsys.readouterr().out
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return replay


def test_a_run_replays_with_its_engine_and_its_adapter(tmp_path: Path, told: Told) -> None:
    """Effects are those of the engine, values of the store those of the effects."""
    host, about = run(EVENTS)
    (found,) = told(0, write(tmp_path / "s.capture.json", host.bundle(), **about), options=("--strict", "--jobs", "2"))
    assert found["outcome"] == "same"
    assert (found["adapter"]["merged"], found["adapter"]["merged_events"]) == ("proved", 1)


def test_parts_replay_in_order_and_hand_over_their_store(tmp_path: Path, told: Told) -> None:
    """The second one has no manifest."""
    one, two, _ = two_parts(tmp_path)
    found = told(0, one, two)
    assert [(part["outcome"], part["adapter"]["store"]) for part in found] == 2 * [("same", "known")]


def test_an_effect_that_the_engine_does_not_have_diverges(tmp_path: Path, told: Told) -> None:
    """It diverges as it does without an adapter."""
    host, about = run(EVENTS)
    (found,) = told(4, write(tmp_path / "s.capture.json", host.bundle(), **about), engine=MISCOUNT)
    assert (found["divergence"]["index"], found["divergence"]["field"]) == (2, "effects")
    assert found["adapter"]["problem"] is None


def test_a_payload_without_a_key_of_the_store_diverges_before_what_follows_from_it(tmp_path: Path, told: Told) -> None:
    """The engine's effect differs too, since it reads the key."""
    host, _ = run(EVENTS)
    with_payload(host.bundle(), 2, b'{"by":2.5}')
    (found,) = told(4, write(tmp_path / "s.capture.json", host.bundle()))
    assert (found["divergence"]["index"], found["divergence"]["field"]) == (2, "payload")
    assert found["divergence"]["replayed"] == '{"by":2.5,"total":1.0}'
    assert "payload was captured as" in found["divergence"]["sentence"]


def test_a_changed_value_of_the_store_is_unsound(tmp_path: Path, told: Told) -> None:
    """An engine that reads the changed value would do something else: what was captured was mended with it."""
    host, about = run(EVENTS)
    with_payload(host.bundle(), 2, b'{"by":2.5,"total":2.0}')
    with_effect(host.bundle(), 2, ActionEffect("set_context", (EffectWrite("total", Value(Number=4.5)),)))
    (found,) = told(1, write(tmp_path / "s.capture.json", host.bundle(), **about))
    assert found["outcome"] == "failed"
    assert "`merged`" in found["error"]


def test_another_adapter_is_an_error_before_an_episode_runs(tmp_path: Path, told: Told) -> None:
    """The provenances are compared."""
    file = write(tmp_path / "s.capture.json", run(EVENTS)[0].bundle())
    (found,) = told(1, file, engine=MISCOUNT, text=ADAPTER.replace("1.0.0", "1.0.1", 1))
    assert "adapter provenance mismatch" in found["error"]
    (found,) = told(1, file, engine=MISCOUNT, text=ADAPTER.replace("1.0.0", "1.0.1", 1), options=("--strict",))
    assert "adapter provenance mismatch" in found["error"]


KEEPS_SESSIONS = """\
import json
import sys

print(json.dumps({"type": "ready", "protocol": "ergo-engine.v1", "runtime_provenance": "r", "features": ["sessions"]}))
sys.stdout.flush()
for line in sys.stdin:
    with open(sys.argv[1], "a") as log:
        log.write(line)
    if (run := json.loads(line))["type"] == "run":
        print(json.dumps({"type": "ran", "id": run["id"], "termination": "Completed"}), flush=True)
"""


def test_an_engine_is_told_of_the_session_and_of_semantic_kinds(tmp_path: Path, told: Told) -> None:
    """It is told what the daemon would tell it, if it lists the feature."""
    host, about = run([("clock", {"hour": 1}), ("clock", {"hour": 2})])
    file = write(tmp_path / "s~2.capture.json", host.bundle(), session="s", part=2, **about)
    (tmp_path / "engine.py").write_text(KEEPS_SESSIONS)
    told(0, file, engine=f"process:{sys.executable} {tmp_path}/engine.py {tmp_path}/log")
    said = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [(each["type"], each["session"], each["part"]) for each in said[:3]] == [
        ("begin", "s", 2),
        ("run", "s", 2),
        ("run", "s", 2),
    ]
    assert [each["semantic_kind"] for each in said[1:3]] == ["clock", "clock"]


def test_an_interruption_is_noted_and_no_divergence(tmp_path: Path, told: Told) -> None:
    """The reference does not compare it."""
    host, _ = run(EVENTS)
    text = "egress dispatch failed: egress ack timeout on channel 'c' for intent 'i'"
    host.bundle().decisions[-1] = msgspec.structs.replace(host.bundle().decisions[-1], interruption=text)
    (found,) = told(0, write(tmp_path / "s.capture.json", host.bundle()))
    assert found["notes"] == [
        f"decision 3, event 'e3': the run was interrupted there: {text}; a replay sends no intents"
    ]


READ_ONLY = ADAPTER.replace("writable: true", "writable: false")


def test_episodes_overlap_where_the_adapter_has_no_writable_keys(tmp_path: Path, told: Told) -> None:
    """As many episodes run as were asked for, and the decisions are compared in order."""
    Busy.most = 0
    host, _ = run([("clock", {"hour": hour}) for hour in range(20)], adapter_text=READ_ONLY)
    file = write(tmp_path / "s.capture.json", host.bundle())
    (found,) = told(0, file, engine=WAIT, text=READ_ONLY, options=("--pipeline", "4"))
    assert (found["outcome"], found["decisions"], Busy.most) == ("same", 20, 4)


def test_episodes_do_not_overlap_where_effects_write_keys(tmp_path: Path, told: Told) -> None:
    """The output says that they do not."""
    Busy.most = 0
    (found,) = told(
        0, write(tmp_path / "s.capture.json", run(EVENTS)[0].bundle()), engine=WAIT, options=("--pipeline", "4")
    )
    assert Busy.most == 1
    assert found["notes"] == ["episodes ran one after the other: effects write total, label"]


def test_a_divergence_is_found_though_episodes_overlap(tmp_path: Path, told: Told) -> None:
    """The first one, with what stands before it."""
    host, _ = run([("clock", {"hour": hour}) for hour in range(30)], adapter_text=READ_ONLY)
    records = host.bundle().decisions
    for index in (12, 14):
        records[index] = msgspec.structs.replace(records[index], retry_count=0, episode_id=99)
    file = write(tmp_path / "s.capture.json", host.bundle())
    (found,) = told(4, file, engine=WAIT, text=READ_ONLY, options=("--pipeline", "8"))
    assert (found["divergence"]["index"], found["divergence"]["field"]) == (12, "episode_id")
    assert [line.split()[0] for line in found["divergence"]["before"]] == ["9", "10", "11"]
    (found,) = told(4, file, engine=WAIT, text=READ_ONLY, options=("--pipeline", "8", "--all-divergences"))
    assert found["diverged"] == 2
