"""A session with an adapter is stopped after any frame and taken up again: the bundles are those of an uncut run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.journal.hosted import CONTRACT, FAILED, Sent, publish_all, sends, sets
from tests.journal.journals import journal_in, recovered
from tests.journal.small_daemon import Script, SmallDaemon

from ergo_capture.bundle.manifest import read_manifest
from ergo_capture.bundle.names import manifest_path, rest_path
from ergo_capture.journal.frame import FrameKind, PendingFrame
from ergo_capture.journal.payloads import Ack, Outcome
from ergo_capture.kernel.outcomes import RunTermination
from ergo_capture.kernel.ports import RunResult

PAYLOADS: list[tuple[str, dict[str, Any]]] = [
    ("full", {}),
    ("full", {"n": 1.5}),
    ("full", {"v": [1, 2]}),
    ("plain", {"note": "ü"}),
]
Bundles = list[tuple[bytes, bytes, bytes | None]]


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    """Generate scripts: pumps and events of two kinds, runs that write, send, fail and time out, parts, a store."""
    count = draw(st.integers(1, 7))
    secs = draw(st.lists(st.integers(0, 6), min_size=count, max_size=count).map(sorted))
    events: list[Sent] = []
    results: dict[str, RunResult] = {}
    for number in range(count):
        event_id = f"e{number}"
        kind = draw(st.sampled_from(["Command", "Command", "DataAvailable", "Pump"]))
        semantic_kind, payload = draw(st.sampled_from(PAYLOADS))
        events.append((event_id, kind, secs[number], semantic_kind, payload))
        results[event_id] = draw(
            st.sampled_from(
                [
                    RunResult(RunTermination.Completed),
                    sets(n=3),
                    sets(n=11),
                    sends(f"{event_id}/1", f"{event_id}/2", n=number),
                    sends(f"{event_id}/1"),
                    FAILED,
                    RunResult(RunTermination.TimedOut),
                ]
            )
        )
    intents = [f"{event_id}/{n}" for event_id in results for n in (1, 2)]
    frames = []
    rest = events
    while rest:
        size = draw(st.integers(1, 3))
        frames.append(rest[:size])
        rest = rest[size:]
    return Script(
        frames,
        results,
        unacknowledged=draw(st.just(set()) | st.sampled_from(intents).map(lambda name: {name})),
        rotate_after=draw(st.sets(st.integers(1, count), max_size=2)),
        lag=draw(st.integers(0, 3)),
        contract=replace(CONTRACT, context_bytes=draw(st.sampled_from([None, None, 6]))),
    )


def copy_of(script: Script) -> Script:
    """Return the script as it was before anything was done."""
    return Script(
        script.events,
        script.results,
        script.unacknowledged,
        script.rotate_after,
        script.lag,
        script.contract,
    )


def published(journal: Path) -> Bundles:
    """Publish the session; return each bundle with its manifest and the events that are left over."""
    folder = journal.parent / "bundles"
    folder.mkdir()
    found: Bundles = []
    for bundle in publish_all(journal, folder):
        rest = rest_path(bundle)
        found.append(
            (bundle.read_bytes(), manifest_path(bundle).read_bytes(), rest.read_bytes() if rest.exists() else None)
        )
    return found


def run(script: Script, directory: Path, most: int | None = None) -> list[PendingFrame]:
    """Start the daemon on a journal and stop it after so many commits; return the committed frames."""
    directory.mkdir(parents=True, exist_ok=True)
    recovery = recovered(directory)
    assert recovery.reasons == {}
    daemon = SmallDaemon(script, recovery.sessions[0] if recovery.sessions else None)
    journal = journal_in(directory, segment_bytes=1 << 16)
    committed: list[PendingFrame] = []
    if most != 0:
        for frame in daemon.run():
            journal.commit([frame])
            committed.append(frame)
            if len(committed) == most:
                break
    journal.close()
    return committed


def accounted(bundles: Bundles, folder: Path) -> int:
    """Return the number of events in the manifests: decided, refused and left over."""
    total = 0
    for path in folder.glob("*.manifest.json"):
        manifest = read_manifest(path)
        total += manifest.events
        total += 0 if manifest.refused is None else manifest.refused.count
        total += 0 if manifest.left_over is None else manifest.left_over.count
    assert bundles
    return total


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(scripts())
def test_a_cut_behind_any_frame_changes_nothing(script: Script) -> None:
    """Bundles, manifests and left-over events are the same to the byte; accepted = decided + refused + left over."""
    check_all_cuts(script)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(scripts())
def test_a_cut_behind_any_frame_of_many_sessions_changes_nothing(script: Script) -> None:
    """This runs the same check for more sessions."""
    check_all_cuts(script)


def check_all_cuts(script: Script) -> None:
    """Run a script uncut, and again with a cut after each frame, and compare the results."""
    with tempfile.TemporaryDirectory() as place:
        uncut = copy_of(script)
        frames = run(uncut, Path(place) / "uncut" / "journal")
        expected = published(Path(place) / "uncut" / "journal")
        accepted = sum(frame.count for frame in frames if frame.kind is FrameKind.EVENTS)
        assert accounted(expected, Path(place) / "uncut" / "bundles") == accepted
        for cut in range(len(frames)):
            again = copy_of(script)
            journal = Path(place) / f"cut{cut}" / "journal"
            before = run(again, journal, cut)
            after = run(again, journal)
            sent = sum(frame.count for frame in [*before, *after] if frame.kind is FrameKind.EVENTS)
            found = published(journal)
            if sent == accepted:
                assert found == expected, cut
            else:
                # The client was told of the interruption before it had sent everything.
                assert [bundle for bundle, _, _ in found] == [bundle for bundle, _, _ in expected]
                assert accounted(found, journal.parent / "bundles") == sent
            assert_nothing_is_done_twice(again, before)


def assert_nothing_is_done_twice(script: Script, before: list[PendingFrame]) -> None:
    """Assert that no intent with a durable ACK frame is sent again, and no episode with an OUTCOME frame runs again."""
    for frame in before:
        if frame.kind is FrameKind.ACK:
            intent_id = msgspec.json.decode(frame.body, type=Ack).ack.intent_id
            assert script.sent.count(intent_id) == 1
        if frame.kind is FrameKind.OUTCOME:
            effects = msgspec.json.decode(frame.body, type=Outcome).effects
            (event_id,) = {name for name, result in script.results.items() if result.effects == effects}
            # Once more for each cut before its outcome was durable; here there was none.
            assert script.ran.count(event_id) == 1
