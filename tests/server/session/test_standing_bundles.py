"""Finished bundles stay: with restored state directories, repeated publications and stops; their numbers are unique."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import structlog
from tests.daemons import event, running_daemon, short_directory
from tests.server.looks import manifests, sessions_of, until
from tests.server.session.test_admission_queue import chunk
from tests.server.session.test_refusals import opened

from ergo_capture import decode_bundle
from ergo_capture.bundle.names import manifest_path
from ergo_capture.bundle.sequence import greatest_sequence
from ergo_capture.cli.support.captures import capture_named
from ergo_capture.journal.scan import scan
from ergo_capture.journal.segment import segment_path
from ergo_capture.repair.doctor import Severity, diagnose
from ergo_capture.server import publisher as publisher_module
from ergo_capture.server.session import parts
from ergo_capture.storage import RealStorage
from ergo_capture.storage.atomic import write_bytes_atomic
from ergo_capture.storage.write_error import CaptureWriteError

LINGER = '[session]\nlinger = "50ms"\n'


def ids_of(bundle: str | Path) -> list[str]:
    """Return the ids of a bundle's events."""
    return [found.event_id for found in decode_bundle(Path(bundle).read_bytes()).events]


def restore(backup: Path, journal: Path) -> None:
    """Replace a journal with an older one."""
    shutil.rmtree(journal)
    shutil.copytree(backup, journal)


async def session_that_ends(state: Path, backup: Path, *, flush: bool = False, close: bool = True) -> dict[str, Any]:
    """Capture a, back up the journal, then capture b and c; return the last frame that the client got."""
    async with running_daemon(state=state) as daemon, daemon.session() as wire:
        await wire.say(event("a"))
        await wire.until_ack(1, 1)
        shutil.copytree(state / "journal", backup)
        await wire.say(event("b"), event("c"), {"type": "close" if close else "flush"})
        return await wire.until("closed" if close else "flushed")


async def test_a_restored_journal_does_not_replace_a_finished_bundle() -> None:
    """The new bundle gets another name, an error line and a finding of doctor; a further start adds none."""
    with short_directory() as place:
        state, backup = place / "state", place / "backup"
        closed = await session_that_ends(state, backup)
        before = [Path(closed[name]).read_bytes() for name in ("bundle", "manifest")]
        for start in range(2):
            restore(backup, state / "journal")
            with structlog.testing.capture_logs() as logged:
                async with running_daemon(LINGER, state=state) as daemon:
                    await until(lambda: daemon.service.registry.finished)
                    assert [len(ids_of(bundle)) for bundle in daemon.bundles()] == [3, 1]
                    (beside,) = [bundle for bundle in daemon.bundles() if str(bundle) != closed["bundle"]]
                    text = (await daemon.ask("metrics"))["text"]
                    (sample,) = re.findall(r"^ergo_capture_bundles_diverted_total\{.*\} (.*)$", text, re.MULTILINE)
                    assert float(sample) == 1
            (line,) = [entry for entry in logged if entry["event"] == "bundle.diverted"]
            assert (line["log_level"], line["bundle"], line["beside"]) == ("error", str(beside), closed["bundle"])
            assert beside.name == Path(closed["bundle"]).name.replace(".", "~1~2.", 1), start
            manifest = json.loads(manifest_path(beside).read_bytes())
            assert (manifest["ended"], manifest["beside"]) == ("recovered", Path(closed["bundle"]).name)
            assert [Path(closed[name]).read_bytes() for name in ("bundle", "manifest")] == before
        (found,) = [finding for finding in diagnose(state).findings if finding.path == str(beside)]
        assert found.severity is Severity.WARNING
        assert closed["bundle"] in found.message


async def test_a_restored_journal_does_not_replace_a_longer_snapshot() -> None:
    """Acknowledged events that only the snapshot has stay there, until a bundle has all of them."""
    with short_directory() as place:
        state, backup = place / "state", place / "backup"
        flushed = await session_that_ends(state, backup, close=False)
        restore(backup, state / "journal")
        async with running_daemon(state=state) as daemon:
            (session,) = sessions_of(daemon)
            await session.flush()
            assert {tuple(ids_of(bundle)) for bundle in daemon.bundles()} == {("a", "b", "c"), ("a",)}
            async with daemon.wire() as wire:
                await wire.open(session=Path(flushed["bundle"]).name.partition(".")[0])
                await wire.say(event("b"), event("c"), event("d"), {"type": "close"})
                closed = await wire.until("closed")
            assert (closed["bundle"], ids_of(closed["bundle"])) == (flushed["bundle"], ["a", "b", "c", "d"])


async def test_a_name_that_stands_for_a_session_finds_its_finished_bundle() -> None:
    """This holds even while a restored journal has the session open, with fewer events."""
    with short_directory() as place:
        state, backup = place / "state", place / "backup"
        closed = await session_that_ends(state, backup)
        (state / "config.toml").write_text("")
        restore(backup, state / "journal")
        assert str(capture_named(closed["session"], str(state), state / "config.toml").bundle) == closed["bundle"]


async def test_a_bundle_that_stands_already_is_not_written_again() -> None:
    """After a kill between bundle and PUBLISHED frame only the frame is written, even if the style has changed."""
    with short_directory() as place:
        state = place / "state"
        async with running_daemon(state=state) as daemon, daemon.session() as wire:
            await wire.say(event("a"), event("b"), {"type": "close"})
            closed = await wire.until("closed")
            # The journal as it is before the frame: it was never written.
            journal = place / "journal"
            shutil.copytree(state / "journal", journal)
        _without_published(journal)
        restore(journal, state / "journal")
        bundle = Path(closed["bundle"])
        before = [(path.read_bytes(), path.stat().st_ino) for path in (bundle, manifest_path(bundle))]
        text = '[bundle]\nstyle = "pretty"\ncompress = "zstd"\n'
        async with running_daemon(text, state=state) as daemon:
            await until(lambda: daemon.service.registry.finished)
        assert [(path.read_bytes(), path.stat().st_ino) for path in (bundle, manifest_path(bundle))] == before
        assert len(manifests(daemon)) == 1


def _without_published(journal: Path) -> None:
    """Cut a journal's only segment where its PUBLISHED frame begins."""
    found = scan(journal, RealStorage())
    (position,) = [at for frames in found.sessions.values() for at in frames.published]
    with segment_path(journal, position.segment).open("r+b") as file:
        size = file.seek(0, 2)
        file.truncate(position.offset)
        file.truncate(size)


async def test_the_bundle_of_a_session_that_outlives_a_stop_says_open() -> None:
    """It goes on at the next start. Only a session that ends is interrupted or recovered."""
    with short_directory() as place:
        state = place / "state"
        async with running_daemon(state=state) as daemon, daemon.session() as wire:
            await wire.say(event("a"))
            await wire.until_ack(1, 1)
        assert [(m["ended"], m["events"], m.get("sequence")) for m in manifests(daemon)] == [("open", 1, None)]
        async with running_daemon(LINGER, state=state) as daemon:
            await until(lambda: daemon.service.registry.finished)
        assert [(m["ended"], m["events"], m["sequence"]) for m in manifests(daemon)] == [("interrupted", 1, 1)]


async def test_what_0_1_0_published_at_its_stop_goes_on() -> None:
    """Its manifest says interrupted, and has no number."""
    with short_directory() as place:
        state = place / "state"
        async with running_daemon(state=state) as daemon, daemon.session() as wire:
            await wire.say(event("a"))
            await wire.until_ack(1, 1)
        (path,) = state.rglob("*.manifest.json")
        path.write_bytes(path.read_bytes().replace(b'"open"', b'"interrupted"'))
        async with running_daemon(state=state) as daemon, daemon.wire() as again:
            await again.open(session=wire.opened["session"])
            await again.say(event("b"), {"type": "close"})
            closed = await again.until("closed")
            assert ids_of(closed["bundle"]) == ["a", "b"]
            assert [(m["ended"], m["events"]) for m in manifests(daemon)] == [("complete", 2)]


# --- numbers ---


async def capture_one(daemon: Any) -> dict[str, Any]:
    """Capture a session of one event; return its manifest."""
    async with daemon.session() as wire:
        await wire.say(event("a"), {"type": "close"})
        manifest: dict[str, Any] = json.loads(Path((await wire.until("closed"))["manifest"]).read_bytes())
        return manifest


async def test_finished_bundles_are_numbered_in_the_order_of_their_publication(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This holds over starts and whatever the clock says; snapshots have no number."""
    with short_directory() as place:
        times = iter(["2039-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "2026-01-01T00:00:00Z"])
        monkeypatch.setattr(publisher_module, "utc_now", lambda: next(times))
        for number in (1, 2, 3):
            async with running_daemon(state=place / "state") as daemon:
                assert (await capture_one(daemon))["sequence"] == number
        monkeypatch.undo()
        async with running_daemon("[rotation]\nmax_events = 1\n", state=place / "state") as daemon:
            async with daemon.session() as wire:
                await wire.say(event("a"), {"type": "flush"})
                await wire.until("flushed")
                await wire.say(event("b"), {"type": "close"})
                await wire.until("closed")
            assert sorted(m["sequence"] for m in manifests(daemon)) == list(range(1, 4 + len(daemon.bundles()) - 3))


async def test_a_start_looks_for_the_greatest_number_once_and_before_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With many bundles it takes seconds, and the first client that closes a session would wait for it."""
    looks: list[int] = []

    def look(bundles: Path) -> int:
        looks.append(greatest_sequence(bundles))
        return looks[-1]

    monkeypatch.setattr(publisher_module, "greatest_sequence", look)
    with short_directory() as place:
        for number in (1, 2):
            looks.clear()
            async with running_daemon(state=place / "state") as daemon:
                await until(lambda: bool(looks))
                assert looks == [number - 1]
                assert (await capture_one(daemon))["sequence"] == number
            assert len(looks) == 1


async def test_a_number_is_not_given_twice_after_its_bundle_was_deleted() -> None:
    """The number is in the PUBLISHED frame, or in the manifest of an interrupted deletion."""
    with short_directory() as place:
        state = place / "state"
        async with running_daemon(state=state) as daemon:
            first = await capture_one(daemon)
            second = await capture_one(daemon)
        (path,) = state.rglob(f"{second['session']}.manifest.json")
        path.rename(path.with_name(path.name + ".pruning"))
        (state / "bundles" / "default" / second["bundle"]).unlink()
        assert greatest_sequence(state / "bundles") == 2
        shutil.rmtree(state / "bundles")
        async with running_daemon(state=state) as daemon:
            assert (first["sequence"], second["sequence"], (await capture_one(daemon))["sequence"]) == (1, 2, 3)


def test_what_is_no_number_is_ignored(tmp_path: Path) -> None:
    """A manifest that somebody changed must not use up the numbers."""
    assert greatest_sequence(tmp_path / "absent") == 0
    folder = tmp_path / "g"
    folder.mkdir()
    for at, text in enumerate(('"7"', "true", str(1 << 63), "-1", "null", "{", "5")):
        (folder / f"{at}.manifest.json").write_text(f'{{"sequence": {text}}}')
    (folder / "notes.txt").write_text('{"sequence": 9}')
    (folder / "x.manifest.json").mkdir()
    (tmp_path / "linked").symlink_to(folder)
    assert greatest_sequence(tmp_path) == 5


async def test_a_failed_publication_leaves_no_gap_and_no_number_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the manifest was renamed and only the sync failed, the number is taken."""
    name = "ergo_capture.bundle.writer.compose.write_bytes_atomic"
    async with running_daemon() as daemon:

        def fail_after(path: Path, data: bytes, **_options: Any) -> None:
            write_bytes_atomic(path, data)
            monkeypatch.setattr(name, write_bytes_atomic)
            raise CaptureWriteError.sync_directory(path, OSError(5, "Input/output error"))

        def fail_before(path: Path, _data: bytes, **_options: Any) -> None:
            monkeypatch.setattr(name, write_bytes_atomic)
            raise CaptureWriteError.create_output_directory(path, OSError(5, "Input/output error"))

        for fail, number in ((fail_before, None), (fail_after, 1)):
            monkeypatch.setattr(name, fail)
            async with daemon.session() as wire:
                await wire.say(event("a"), {"type": "close"})
                assert (await wire.rest())[-1]["code"] == "storage_failed"
                found = [m for m in manifests(daemon) if m["session"] == wire.opened["session"]]
                assert [m["sequence"] for m in found] == ([] if number is None else [number])
        assert (await capture_one(daemon))["sequence"] == 2


async def test_a_close_names_the_bundles_of_the_last_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session may have any number of parts, and an answer does not."""
    monkeypatch.setattr(parts, "_MOST_PUBLICATIONS", 2)
    async with running_daemon("[rotation]\nmax_events = 1\n") as daemon, daemon.session() as wire:
        for number, name in enumerate("abcd", 1):
            await wire.say(event(name))
            await wire.until_ack(number, number)
        await wire.say({"type": "close"})
        closed = await wire.until("closed")
        assert [ids_of(bundle) for bundle in closed["bundles"]] == [["c"], ["d"]]


async def test_a_part_ends_after_each_chunk_that_fills_it_though_further_chunks_wait() -> None:
    """Chunks that are accepted together do not become one part."""
    async with running_daemon("[rotation]\nmax_events = 1\n") as daemon:
        session = await opened(daemon)
        for name in "abc":
            session.admit(chunk(name), 8)
        session.end("complete")
        await session.over.wait()
        assert [ids_of(bundle) for bundle in session.bundles] == [["a"], ["b"], ["c"]]


async def test_the_bytes_of_a_parts_chunks_add_up() -> None:
    """Each chunk alone is within the bound."""
    async with running_daemon('[rotation]\nmax_bytes = "300B"\n') as daemon, daemon.session() as wire:
        for number, name in enumerate("abcd", 1):
            await wire.say(event(name, payload={"x": "y" * 150}))
            await wire.until_ack(number, number)
        await wire.say({"type": "close"})
        closed = await wire.until("closed")
        assert [ids_of(bundle) for bundle in closed["bundles"]] == [["a", "b"], ["c", "d"]]
