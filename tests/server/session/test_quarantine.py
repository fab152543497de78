"""Quarantined sessions: they keep nothing of the journal, and there is a way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.daemons import event, running_daemon, short_directory
from tests.server.looks import is_served, until

from ergo_capture.bundle.verify import verify_bundle
from ergo_capture.cli import app
from ergo_capture.journal.scan import scan
from ergo_capture.repair.doctor import Severity, diagnose
from ergo_capture.server.session import quarantine
from ergo_capture.storage import RealStorage, StorageError

SEGMENTS = '[journal]\nsegment_bytes = "64KiB"\n'


async def damaged(state: Path, *, snapshot: bool = False) -> str:
    """Make a journal with one damaged session of three chunks of events; return its id."""
    async with running_daemon(SEGMENTS, state) as daemon, daemon.session() as wire:
        for lot in range(3):
            await wire.say(*(event(f"e{lot}{n}", payload={"lot": f"lot {lot}"}) for n in range(5)))
            await wire.until_ack(5 * lot + 5, 5 * lot + 5)
    if not snapshot:
        # The stop has published one.
        for path in (state / "bundles" / "default").iterdir():
            path.unlink()
    segment = state / "journal" / "0000000000000001.journal"
    data = segment.read_bytes()
    segment.write_bytes(
        data.replace(b'"lot":"lot 1"', b'"lot":"rot 1"', 1).replace(b'"lot": "lot 1"', b'"lot": "rot 1"', 1)
    )
    assert segment.read_bytes() != data
    return str(wire.opened["session"])


def _flood(count: int) -> list[dict[str, Any]]:
    return [event(f"f{n}", payload={"x": "y" * 16_000}) for n in range(count)]


async def test_a_quarantined_session_keeps_nothing_of_the_journal() -> None:
    """It is set aside at the start, and reported until it is settled; later starts do not meet it in the journal."""
    with short_directory() as place:
        state = place / "state"
        session = await damaged(state)
        for start in range(2):
            async with running_daemon(SEGMENTS, state) as daemon:
                aside = state / "journal.quarantine-1"
                await until(aside.is_dir)
                assert list(daemon.service.registry.quarantined) == [session]
                async with daemon.session() as wire:
                    await wire.say(*_flood(40), {"type": "close"})
                    await wire.until("closed")
                await until(lambda: len(list((state / "journal").glob("*.journal"))) <= 4)
                status = (await daemon.ask("status"))["status"]["running"]
                assert list(status["quarantined"]) == [session]
                assert status["journal_holder"] is None
            assert [path.name for path in state.glob("journal.*")] == ["journal.quarantine-1"], start
        assert not scan(state / "journal", RealStorage()).damage


async def test_settling_salvages_a_quarantined_session_and_reports_it_no_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`doctor` finds an error before, and none after; what could be proved is a bundle that verifies."""
    with short_directory() as place:
        state = place / "state"
        session = await damaged(state)
        async with running_daemon(SEGMENTS, state):
            await until((state / "journal.quarantine-1").is_dir)
            await until(lambda: not (state / "journal" / "0000000000000001.journal").exists())
        (finding,) = [f for f in diagnose(state).findings if f.severity is Severity.ERROR]
        assert session in finding.message
        assert "--settle" in finding.message
        assert app.run(["recover", str(state), "-o", str(place / "saved")]) == 3
        assert verify_bundle(place / "saved" / "default" / f"{session}.capture.json").events == 5
        assert diagnose(state / "journal.quarantine-1").findings[0].severity is Severity.ERROR
        capsys.readouterr()
        assert app.run(["recover", str(state), "--settle"]) == 3
        assert session in capsys.readouterr().out
        bundle = state / "journal.settled-1" / "salvaged" / "default" / f"{session}.capture.json"
        assert (verify_bundle(bundle).ok, verify_bundle(bundle).events) == (True, 5)
        assert diagnose(state).sound
        assert app.run(["recover", str(state), "--settle"]) == 0
        async with running_daemon(SEGMENTS, state) as daemon:
            assert daemon.service.registry.quarantined == {}
            await is_served(daemon)


async def test_a_running_daemon_notices_that_a_session_was_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """`status` and the metrics name it until then; the alert on it ends without a restart."""
    monkeypatch.setattr(quarantine, "_LOOK_SECONDS", 0.05)
    with short_directory() as place:
        state = place / "state"
        session = await damaged(state)
        async with running_daemon(SEGMENTS, state) as daemon:
            await until((state / "journal.quarantine-1").is_dir)
            await until(lambda: daemon.service.registry.quarantine.segments == {})
            status = (await daemon.ask("status"))["status"]["running"]
            assert list(status["quarantined"]) == [session]
            assert app.run(["recover", str(state), "--settle"]) == 3
            await until(lambda: daemon.service.registry.quarantined == {})
            assert (await daemon.ask("status"))["status"]["running"]["quarantined"] == {}


async def test_a_journal_is_settled_that_no_daemon_has_started_on() -> None:
    """The damage may be of a daemon of 0.1.0; the next start goes on without the session."""
    with short_directory() as place:
        state = place / "state"
        await damaged(state)
        assert app.run(["recover", str(state), "--settle"]) == 3
        async with running_daemon(SEGMENTS, state) as daemon:
            assert daemon.service.registry.quarantined == {}
        assert diagnose(state).sound


async def test_a_snapshot_that_holds_all_of_a_damaged_session_is_no_loss(capsys: pytest.CaptureFixture[str]) -> None:
    """`recover` and `doctor` know the bundles that stand beside the journal."""
    with short_directory() as place:
        state = place / "state"
        session = await damaged(state, snapshot=True)
        capsys.readouterr()
        assert app.run(["recover", str(state), "--settle", "--json"]) == 0
        (part,) = map(json.loads, capsys.readouterr().out.splitlines())
        assert (part["session"], part["whole"], part["ended"]) == (session, True, "published")
        assert part["bundle"] == str(state / "bundles" / "default" / f"{session}.capture.json")


async def test_a_session_whose_graph_is_gone_waits_for_it_until_it_keeps_too_much() -> None:
    """It is taken up when its graph is back; a flood moves it aside, and settling gives it a bundle."""
    with short_directory() as place:
        state = place / "state"
        text = SEGMENTS + "[rotation]\nmax_journal_bytes = {}\n[graphs.default]\n[graphs.{}]\n"
        async with running_daemon(text.format('"1GiB"', "mine"), state) as daemon, daemon.session(graph="mine") as wire:
            await wire.say(event("a"), event("b"))
            await wire.until_ack(2, 2)
        session = wire.opened["session"]
        async with running_daemon(text.format('"1GiB"', "other"), state) as daemon:
            assert list(daemon.service.registry.quarantined) == [session]
            async with daemon.session() as flood:
                await flood.say(*_flood(40), {"type": "close"})
                await flood.until("closed")
            holder = (await daemon.ask("status"))["status"]["running"]["journal_holder"]
            assert (holder["session"], holder["quarantined"]) == (session, True)
        async with running_daemon(text.format('"1GiB"', "mine"), state) as daemon, daemon.session(session=session):
            assert daemon.service.registry.quarantined == {}
        async with running_daemon(text.format('"256KiB"', "other"), state) as daemon:
            async with daemon.session() as flood:
                await flood.say(*_flood(40), {"type": "close"})
                await flood.until("closed")
            await until((state / "journal.quarantine-1").is_dir)
            await until(lambda: len(list((state / "journal").glob("*.journal"))) <= 6)
        for path in (state / "bundles" / "mine").iterdir():
            path.unlink()
        assert app.run(["recover", str(state), "--settle"]) == 0
        bundle = state / "journal.settled-1" / "salvaged" / "mine" / f"{session}.capture.json"
        assert verify_bundle(bundle).events == 2


async def test_an_open_session_is_given_up_by_its_id(capsys: pytest.CaptureFixture[str]) -> None:
    """No daemon may be running. Its graph may be gone for good."""
    with short_directory() as place:
        state = place / "state"
        async with running_daemon(SEGMENTS, state) as daemon, daemon.session() as wire:
            await wire.say(event("a"))
            await wire.until_ack(1, 1)
            assert app.run(["recover", str(state), "--settle", "--session", wire.opened["session"]]) == 1
        assert app.run(["recover", str(state), "--settle", "--session", "nobody"]) == 1
        assert "it is not open in the journal" in capsys.readouterr().err
        assert app.run(["recover", str(state), "--settle", "--session", wire.opened["session"]]) == 0
        async with running_daemon(SEGMENTS, state) as daemon:
            assert daemon.service.registry.sessions == {}
            await is_served(daemon)


class _WithoutLinks(RealStorage):
    def link(self, source: Path, destination: Path) -> None:
        raise StorageError("link", destination, OSError(1, "Operation not permitted"))


async def test_segments_are_copied_where_the_file_system_makes_no_links() -> None:
    """A FAT file system makes none."""
    with short_directory() as place:
        state = place / "state"
        await damaged(state)
        async with running_daemon(SEGMENTS, state, _WithoutLinks()):
            await until((state / "journal.quarantine-1").is_dir)
        assert (state / "journal.quarantine-1" / "0000000000000001.journal").stat().st_nlink == 1
        assert app.run(["recover", str(state), "--settle"]) == 3
