"""``ergo-capture recover``: its bundles verify, its counts add up, and it never changes the source."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tests.bundle.test_stream import rich_bundle
from tests.bundles import small_bundle
from tests.journal.captures import Written, a_session, write_sessions
from tests.journal.journals import flip, frames_of, journal_in, last_segment, shrink
from tests.journal.test_damaged import append_frame

from ergo_capture import decode_bundle
from ergo_capture.bundle.format import CaptureJsonStyle, encode_bundle
from ergo_capture.cli import app
from ergo_capture.cli.commands.simulate import run_scenario
from ergo_capture.cli.support.verification import check
from ergo_capture.errors import ExitCode
from ergo_capture.journal.frame import FrameKind, PendingFrame
from ergo_capture.journal.payloads import Publication, encode_body
from ergo_capture.journal.segment import segment_path
from ergo_capture.kernel.scenario import read_scenario

BUNDLE = rich_bundle(60)
TEXT = encode_bundle(BUNDLE)
IDS = [event.event_id for event in BUNDLE.events]


def contents(source: Path) -> dict[str, str]:
    """Return the hash of every file of a source."""
    files = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def recovered(source: Path, output: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, list[Any]]:
    """Run recover; return the exit code and the printed objects; check that the source is unchanged."""
    before = contents(source)
    capsys.readouterr()
    code = app.run(["recover", "--json", str(source), "-o", str(output), *more])
    assert contents(source) == before
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def check_account(said: Any, ids: list[str]) -> None:
    """Check that the bundle verifies and begins as the original, and that every event is accounted for once."""
    counts, bundle = said["counts"], Path(said["bundle"])
    verdict = check(bundle)
    assert verdict["ok"], verdict
    kept = [event.event_id for event in decode_bundle(bundle.read_bytes()).events]
    assert kept == ids[: counts["kept"]]
    aside: list[str] = []
    if said["rest"] is not None:
        scenario = read_scenario(Path(said["rest"]).read_bytes())
        assert len(run_scenario(scenario).events) == counts["aside"]
        aside = [event.event_id for event in scenario.events]
    assert len(aside) == counts["aside"]
    assert [event_id for event_id in ids if event_id in set(kept) | set(aside)] == kept + aside
    found = counts["kept"] + counts["aside"] + counts["refused"]
    assert found + counts["lost"] == len(ids) or (counts["uncertain"] and found + counts["lost"] < len(ids))


# --- bundles ---


def test_p6_a_truncated_bundle_is_recovered_up_to_the_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """P6: the longest run of decisions is kept, other whole events are set aside, the rest is counted."""
    source, output = tmp_path / "cut.capture.json", tmp_path / "saved.capture.json"
    decisions_at = TEXT.index(b'],"decisions":[')
    ends = [
        match.end() for match in re.finditer(rb'\}(?=,\{"event_id"|\],"adap)', TEXT) if match.start() > decisions_at
    ]
    best = 0
    for cut in range(1000, len(TEXT) - 2, 1000):
        source.write_bytes(TEXT[:cut])
        code, (said,) = recovered(source, output, capsys, "--force")
        assert code == ExitCode.DATA_LOSS
        check_account(said, IDS)
        assert said["lost"] == ["adapter_provenance", "runtime_provenance"]
        counts = said["counts"]
        assert counts["kept"] == sum(end <= cut for end in ends)
        assert counts["kept"] + counts["aside"] == TEXT[:cut].count(b'"payload_hash":"') - (
            cut < decisions_at and TEXT[:cut].rfind(b'"payload_hash":"') > TEXT[:cut].rfind(b'"}')
        )
        assert counts["kept"] >= best
        best = counts["kept"]
    assert best > 50


@pytest.mark.parametrize("style", list(CaptureJsonStyle), ids=lambda style: style.value)
def test_a_changed_byte_loses_at_most_one_event(
    style: CaptureJsonStyle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other events are kept or set aside."""
    source, output = tmp_path / "damaged.capture.json", tmp_path / "saved.capture.json"
    text, chance = encode_bundle(BUNDLE, style), random.Random(7)
    begin = text.index(b'"events"') + 20
    for _ in range(40):
        at = chance.randrange(begin, len(text) - 100)
        source.write_bytes(text[:at] + bytes([text[at] ^ 0x15]) + text[at + 1 :])
        code, (said,) = recovered(source, output, capsys, "--force")
        counts = said["counts"]
        assert check(output)["ok"]
        assert counts["lost"] + counts["refused"] <= 1, (at, said)
        assert counts["kept"] + counts["aside"] + counts["refused"] + counts["lost"] == 60
        assert code == (ExitCode.OK if said["whole"] else ExitCode.DATA_LOSS)


def test_a_bundle_that_ends_in_zeros_is_recovered_up_to_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A power failure leaves such a file if it was not synced."""
    source, output = tmp_path / "zeros.capture.json", tmp_path / "saved.capture.json"
    source.write_bytes(TEXT[:-9000] + bytes(9000))
    code, (said,) = recovered(source, output, capsys)
    assert code == ExitCode.DATA_LOSS
    check_account(said, IDS)
    assert 0 < said["counts"]["kept"] < 60


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "changed"])
def test_a_compressed_bundle_is_recovered_up_to_its_damage(
    cut: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text before the damage is treated as a truncated bundle."""
    bundle = rich_bundle(600, payload=200)
    ids = [event.event_id for event in bundle.events]
    packed = zstandard.ZstdCompressor(level=1).compress(encode_bundle(bundle))
    middle = len(packed) * 3 // 4
    source, output = tmp_path / "b.capture.json.zst", tmp_path / "saved.capture.json"
    source.write_bytes(packed[:middle] + (b"" if cut else bytes(50) + packed[middle + 50 :]))
    code, (said,) = recovered(source, output, capsys)
    assert code == ExitCode.DATA_LOSS
    check_account(said, ids)
    assert said["counts"]["kept"] + said["counts"]["aside"] > 100
    assert app.run(["doctor", str(source)]) == ExitCode.FAILED
    assert app.run(["recover", str(source), "-o", str(tmp_path / "x.zst")]) == ExitCode.USAGE


@pytest.mark.parametrize("damage", ["trailing bytes", "checksum"])
def test_a_compressed_bundle_whose_text_is_whole_is_kept_whole(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes after the end and a wrong checksum cost nothing, though the bundle is larger than what is read at a time."""
    bundle = small_bundle(events=2000)
    packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(encode_bundle(bundle)))
    if damage == "checksum":
        packed[-1] ^= 1
    else:
        packed += b"trailing"
    source, output = tmp_path / "b.capture.json.zst", tmp_path / "saved.capture.json"
    source.write_bytes(packed)
    code, (said,) = recovered(source, output, capsys)
    assert (code, said["whole"]) == (0, True)
    assert output.read_bytes() == encode_bundle(bundle)
    assert app.run(["verify", str(source)]) == ExitCode.FAILED


@pytest.mark.parametrize("output", [".", "..", "/", ""])
def test_a_directory_is_no_destination_for_a_bundle(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty name, as of an unset variable, is none either."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.capture.json").write_bytes(encode_bundle(small_bundle()))
    assert app.run(["recover", "b.capture.json", "-o", output]) == ExitCode.USAGE
    assert ("is a directory" if output else "is empty") in capsys.readouterr().err


def test_a_sound_bundle_is_kept_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0, the same bytes, and nothing set aside."""
    source, output = tmp_path / "sound.capture.json", tmp_path / "saved.capture.json"
    source.write_bytes(encode_bundle(BUNDLE, CaptureJsonStyle.Pretty))
    code, (said,) = recovered(source, output, capsys)
    assert (code, said["whole"], said["rest"], said["counts"]["kept"]) == (0, True, None, 60)
    assert output.read_bytes() == TEXT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved.capture.json", "sound.capture.json"]


def test_what_is_gone_may_be_given_or_stand_in_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Provenances are at the end of a bundle's file; the manifest has them too, and the number of events."""
    source, output = tmp_path / "cut.capture.json", tmp_path / "saved.capture.json"
    source.write_bytes(TEXT[:5000])
    given = ["--adapter-provenance", "apv1:z", "--runtime-provenance", "rpv1:z"]
    _, (said,) = recovered(source, output, capsys, *given)
    assert (said["lost"], said["counts"]["uncertain"]) == ([], True)
    assert decode_bundle(output.read_bytes()).adapter_provenance == "apv1:z"
    manifest = {"bundle": source.name, "events": 60, "adapter_provenance": "apv1:m", "runtime_provenance": "rpv1:m"}
    source.with_name("cut.manifest.json").write_text(json.dumps(manifest))
    _, (said,) = recovered(source, output, capsys, "--force")
    bundle = decode_bundle(output.read_bytes())
    assert (bundle.adapter_provenance, bundle.runtime_provenance, said["lost"]) == ("apv1:m", "rpv1:m", [])
    counts = said["counts"]
    assert (counts["uncertain"], counts["kept"] + counts["aside"] + counts["lost"]) == (False, 60)
    assert counts["lost"] > 40


@pytest.mark.parametrize("damage", [b"\\ud800", b"\xed\xa0\x80", b"\xff"], ids=["escape", "surrogate", "no UTF-8"])
def test_a_provenance_that_no_text_can_hold_is_missing(
    damage: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recovered bundle could not be written with it."""
    source, output = tmp_path / "cut.capture.json", tmp_path / "saved.capture.json"
    source.write_bytes(
        re.sub(rb'"runtime_provenance":"', b'"runtime_provenance":"' + damage.replace(b"\\", b"\\\\"), TEXT)
    )
    code, (said,) = recovered(source, output, capsys)
    assert (code, said["lost"], said["counts"]["lost"]) == (ExitCode.DATA_LOSS, ["runtime_provenance"], 0)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"bundle": "cut.capture.json", "adapter_provenance": ["a"]}', "\0", None]
)
def test_an_invalid_manifest_is_ignored(text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is random bytes, a similar text, or a pipe without a writer."""
    source, output = tmp_path / "cut.capture.json", tmp_path / "saved.capture.json"
    source.write_bytes(TEXT[:5000])
    manifest = source.with_name("cut.manifest.json")
    if text is None:
        os.mkfifo(manifest)
    else:
        manifest.write_text(text)
    code, (said,) = recovered(source, output, capsys)
    assert (code, said["lost"]) == (ExitCode.DATA_LOSS, ["adapter_provenance", "runtime_provenance"])


@pytest.mark.parametrize("op", ["open", "write"])
@pytest.mark.parametrize("call", range(3))
def test_a_full_disk_leaves_no_files(
    op: str, call: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1 and no temporary file, whichever write fails."""
    source = tmp_path / "cut.capture.json"
    source.write_bytes(TEXT[:-4000])
    real, calls = getattr(os, op), 0

    def refuse(what: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        if op == "write" or str(what).endswith(".tmp"):
            calls += 1
            if calls == call + 1:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(what, *arguments, **options)

    monkeypatch.setattr(os, op, refuse)
    assert app.run(["recover", str(source), "-o", str(tmp_path / "saved.capture.json")]) == ExitCode.FAILED
    monkeypatch.undo()
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize("text", [b"", b"{}", b"\0" * 100, TEXT[:100], b"[" * 70_000, b"\x28\xb5\x2f\xfd"])
def test_a_file_without_the_beginning_of_a_bundle_is_an_error(
    text: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 with a message and a hint, and nothing is written."""
    source = tmp_path / "none.capture.json"
    source.write_bytes(text)
    assert app.run(["recover", str(source), "-o", str(tmp_path / "saved")]) == ExitCode.FAILED
    said = capsys.readouterr().err
    assert f"Error: recover '{source}': its head cannot be read" in said
    assert "Try: " in said
    assert list(tmp_path.iterdir()) == [source]


def test_text_output_explains_a_recovered_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The output says where the bundle ends and why, where the other events are, and what is lost."""
    source, output = tmp_path / "cut.capture.json", tmp_path / "saved.capture.json"
    source.write_bytes(TEXT[:-4000])
    assert app.run(["recover", str(source), "-o", str(output)]) == ExitCode.DATA_LOSS
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{output}: 46 events with their decisions kept, 14 events set aside")
    assert lines[1].startswith("  it ends there because the next decision cannot be read: ")
    assert lines[1].endswith(")")
    assert lines[2] == f"  set aside in {tmp_path / 'saved.rest.scenario.json'}"
    assert lines[3].startswith("  adapter_provenance is gone; the bundle says 'lost'")


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return a file's content with several random kinds of damage."""
    text = bytearray(data)
    for _ in range(chance.choice([1, 2, 4])):
        at = chance.randrange(len(text))
        match chance.randrange(5):
            case 0:
                text[at] ^= 1 << chance.randrange(8)
            case 1:
                del text[at : at + chance.randrange(3000)]
            case 2:
                size = chance.randrange(2000)
                text[at : at + size] = bytes(size)
            case 3:
                del text[at + len(text) // 2 :]
            case _:
                text[at : at + 100] = chance.randbytes(100)
    return bytes(text)


@pytest.mark.parametrize("seed", range(3))
def test_a_recovered_bundle_verifies_after_any_damage(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes changed, removed, zeroed, overwritten and cut off: a true beginning, or exit code 1."""
    source, output = tmp_path / "damaged.capture.json", tmp_path / "saved.capture.json"
    chance, saved = random.Random(seed), 0
    for _ in range(25):
        source.write_bytes(damaged(encode_bundle(BUNDLE, chance.choice(list(CaptureJsonStyle))), chance))
        output.unlink(missing_ok=True)
        code, said = recovered(source, output, capsys, "--force")
        assert (code == ExitCode.FAILED) == (not output.exists())
        if said:
            saved += 1
            assert check(output)["ok"]
            kept = [event.event_id for event in decode_bundle(output.read_bytes()).events]
            assert kept == IDS[: len(kept)]
            counts = said[0]["counts"]
            assert counts["kept"] + counts["aside"] + counts["refused"] + counts["lost"] <= 60
    assert saved > 15


# --- refused destinations ---


@pytest.mark.parametrize("alias", ["itself", "symlink", "hard link", "through a directory"])
def test_the_destination_must_not_be_the_source(alias: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """This holds for any name of the source, and also with ``--force``."""
    source = tmp_path / "cut.capture.json"
    source.write_bytes(TEXT[:5000])
    output = tmp_path / "other.capture.json"
    if alias == "itself":
        output = source
    elif alias == "symlink":
        output.symlink_to(source)
    elif alias == "hard link":
        os.link(source, output)
    else:
        (tmp_path / "d").symlink_to(tmp_path)
        output = tmp_path / "d" / source.name
    for more in ([], ["--force"]):
        assert app.run(["recover", str(source), "-o", str(output), *more]) == ExitCode.USAGE
        assert "is the source itself" in capsys.readouterr().err
    assert source.read_bytes() == TEXT[:5000]


def test_existing_files_are_replaced_only_with_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files are the bundle and the scenario beside it."""
    source, output = tmp_path / "cut.capture.json", tmp_path / "saved.capture.json"
    source.write_bytes(TEXT[:5000])
    for name in ("saved.capture.json", "saved.rest.scenario.json"):
        there = tmp_path / name
        there.write_text("precious")
        assert app.run(["recover", str(source), "-o", str(output)]) == ExitCode.USAGE
        assert f"'{there}' is there already" in capsys.readouterr().err
        assert there.read_text() == "precious"
        there.unlink()
    output.write_text("precious")
    assert app.run(["recover", str(source), "-o", str(output), "--force"]) == ExitCode.DATA_LOSS
    assert check(output)["ok"]
    source.write_bytes(TEXT)
    assert app.run(["recover", str(source), "-o", str(output), "--force"]) == ExitCode.OK
    assert not (tmp_path / "saved.rest.scenario.json").exists()


def test_a_journal_is_not_recovered_into_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A parent, a directory that is not empty and a file are refused too."""
    state = tmp_path / "state"
    write_sessions(state / "journal")
    before = contents(state)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(state)
    for output in (state, state / "journal", state / "new", tmp_path, tmp_path / "link", tmp_path / "link" / "x"):
        assert app.run(["recover", str(state), "-o", str(output), "--force"]) == ExitCode.USAGE
    assert app.run(["recover", str(state), "-o", str(tmp_path / "file"), "--force"]) == ExitCode.USAGE
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    assert app.run(["recover", str(state), "-o", str(tmp_path / "full")]) == ExitCode.USAGE
    assert "is not empty" in capsys.readouterr().err
    assert contents(state) == before


def test_a_source_that_is_no_capture_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is another directory, a single segment, a pipe, or missing."""
    output = str(tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert app.run(["recover", str(tmp_path / "empty"), "-o", output]) == ExitCode.FAILED
    write_sessions(tmp_path / "journal")
    assert app.run(["recover", str(last_segment(tmp_path / "journal", 1)), "-o", output]) == ExitCode.USAGE
    os.mkfifo(tmp_path / "pipe")
    assert app.run(["recover", str(tmp_path / "pipe"), "-o", output]) == ExitCode.FAILED
    assert app.run(["recover", str(tmp_path / "none"), "-o", output]) == ExitCode.FAILED
    assert capsys.readouterr().err.count("Try: ") == 4
    assert not Path(output).exists()


# --- journals ---


def by_session(said: list[Any]) -> dict[str, Any]:
    """Return the printed objects by session; each session has one part."""
    assert len({one["session"] for one in said}) == len(said)
    return {one["session"]: one for one in said}


def test_a_sound_journal_gives_a_bundle_per_session(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sessions are closed or open; each bundle has its manifest."""
    for close in (True, False):
        written = write_sessions(tmp_path / f"{close}" / "journal", close=close)
        code, said = recovered(tmp_path / f"{close}", tmp_path / f"out {close}", capsys)
        assert (code, sorted(by_session(said))) == (0, ["s1", "s2"])
        for name, session in written.items():
            one = by_session(said)[name]
            check_account(one, session.ids)
            assert (one["whole"], one["ended"]) == (True, "complete" if close else "open")
            bundle = Path(one["bundle"])
            assert bundle == tmp_path / f"out {close}" / "g" / f"{name}.capture.json"
            manifest = json.loads(bundle.with_name(f"{name}.manifest.json").read_bytes())
            assert manifest["sha256"] == hashlib.sha256(bundle.read_bytes()).hexdigest()
            assert (manifest["events"], manifest["labels"]) == (60, {"n": name[1:]})
            assert (manifest["ended"], manifest["salvage"]["kept"]) == ("complete" if close else "open", 60)


def test_undecided_events_are_set_aside_without_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They were accepted, but how their episodes would end is unknown: exit code 0, and a scenario."""
    (tmp_path / "journal").mkdir()
    journal = journal_in(tmp_path / "journal", segment_bytes=1 << 20)
    session = a_session(1)
    journal.commit([session.opening(), session.more(9)])
    journal.commit([session.decide(7)])
    journal.close()
    code, (said,) = recovered(tmp_path / "journal", tmp_path / "out", capsys)
    check_account(said, session.ids)
    assert (code, said["counts"]["kept"], said["counts"]["aside"]) == (0, 7, 2)


def events_frame(segment: Path, session: int, number: int = -1, kind: FrameKind = FrameKind.EVENTS) -> tuple[Any, int]:
    """Return a session's n-th frame of a kind in a segment, and its offset."""
    frames = [(header, at) for header, at in frames_of(segment) if (header.session, header.kind) == (session, kind)]
    return frames[number]


def damaged_body(journal: Path) -> None:
    """Change one byte of an events frame of session 1."""
    flip(last_segment(journal, 2), events_frame(last_segment(journal, 2), 1, 0)[1] + 90)


def damaged_header(journal: Path) -> None:
    """Damage a header of session 1, so that the frame's session is unknown too."""
    flip(last_segment(journal, 2), events_frame(last_segment(journal, 2), 1, 0)[1] + 9)


def damaged_decisions(journal: Path) -> None:
    """Damage a decisions frame of session 1."""
    flip(last_segment(journal, 2), events_frame(last_segment(journal, 2), 1, 0, FrameKind.DECISIONS)[1] + 70)


def missing_segment(journal: Path) -> None:
    """Delete a segment in the middle."""
    last_segment(journal, 2).unlink()


def empty_segment(journal: Path) -> None:
    """Empty a segment."""
    last_segment(journal, 2).write_bytes(b"")


def zeroed_segment(journal: Path) -> None:
    """Overwrite a segment with zeros."""
    segment = last_segment(journal, 2)
    segment.write_bytes(bytes(segment.stat().st_size))


def cut_segment(journal: Path) -> None:
    """Truncate a segment at the end of a frame."""
    segment = last_segment(journal, 2)
    os.truncate(segment, frames_of(segment)[-3][1])


def cut_out_batch(journal: Path) -> None:
    """Remove a batch so that all remaining frames are valid."""
    segment = last_segment(journal, 2)
    frames, data = frames_of(segment), segment.read_bytes()
    starts = [at for header, at in frames if header.index == 0]
    segment.write_bytes(data[: starts[1]] + data[starts[2] :])


def lost_opening(journal: Path) -> None:
    """Damage the OPEN frame of session 1."""
    flip(last_segment(journal, 1), events_frame(last_segment(journal, 1), 1, 0, FrameKind.OPEN)[1] + 70)


def rubbish_in_between(journal: Path) -> None:
    """Overwrite several frames."""
    segment = last_segment(journal, 2)
    with segment.open("r+b") as file:
        file.seek(frames_of(segment)[2][1] + 5)
        file.write(b"rubbish! " * 200)


#: The kinds of damage to a journal that doctor's table lists.
DAMAGES: list[Callable[[Path], None]] = [
    damaged_body,
    damaged_header,
    damaged_decisions,
    missing_segment,
    empty_segment,
    zeroed_segment,
    cut_segment,
    cut_out_batch,
    lost_opening,
    rubbish_in_between,
]


@pytest.mark.parametrize("close", [True, False], ids=["closed", "open"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_p6_a_damaged_journal_is_recovered_as_far_as_it_can_be_proved(
    damage: Callable[[Path], None], close: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """P6: exit code 3, a bundle that verifies per session, whole events after it set aside, correct counts."""
    journal = tmp_path / "journal"
    written = write_sessions(journal, close=close)
    assert len(list(journal.iterdir())) >= 3
    damage(journal)
    code, said = recovered(journal, tmp_path / "out", capsys)
    assert code == ExitCode.DATA_LOSS
    names = by_session(said)
    assert len(names) == 2
    for name, session in written.items():
        one = names.get(name) or names["number 1"]
        check_account(one, session.ids)
        assert one["counts"]["lost"] < 60
        assert not one["counts"]["uncertain"]
        assert one["counts"]["kept"] > 0 or damage is lost_opening
    assert not all(one["whole"] for one in said)
    if damage in (damaged_body, damaged_decisions, lost_opening):
        assert names["s2"]["whole"]
    if damage is damaged_body:
        counts = names["s1"]["counts"]
        assert counts["lost"] == 5
        assert counts["problems"][0]["reason"].endswith(" are missing from the journal")


@pytest.mark.parametrize("seed", range(3))
def test_p6_a_recovered_journal_verifies_after_any_damage(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """P6: with several damaged segments every bundle verifies, and no event is counted twice or invented."""
    journal, chance = tmp_path / "journal", random.Random(seed)
    written = write_sessions(journal, close=seed != 1, rotate_after=5 if seed == 2 else None)
    originals = {path: path.read_bytes() for path in journal.iterdir()}
    for number in range(12):
        for path, data in originals.items():
            path.write_bytes(damaged(data, chance) if chance.randrange(3) == 0 else data)
        code, said = recovered(journal, tmp_path / f"out {number}", capsys)
        assert code in (ExitCode.OK, ExitCode.DATA_LOSS)
        found: dict[str, int] = {}
        for one in said:
            assert check(Path(one["bundle"]))["ok"]
            kept = [event.event_id for event in decode_bundle(Path(one["bundle"]).read_bytes()).events]
            if one["session"] not in written:
                assert kept == []
                continue
            ids = written[one["session"]].ids
            start = ids.index(kept[0]) if kept else 0
            assert kept == ids[start : start + len(kept)]
            counts = one["counts"]
            total = counts["kept"] + counts["aside"] + counts["refused"] + counts["lost"]
            found[one["session"]] = found.get(one["session"], 0) + total
        assert all(total <= 60 for total in found.values())


def test_a_torn_end_is_no_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was never acknowledged: exit code 0, and everything before it is kept."""
    journal = tmp_path / "journal"
    written = write_sessions(journal, close=False)
    segment = max(journal.iterdir())
    with segment.open("ab") as file:
        file.write(b"half a batch" * 20)
    code, said = recovered(journal, tmp_path / "out", capsys)
    assert code == 0
    for name, session in written.items():
        check_account(by_session(said)[name], session.ids)


def test_a_damaged_end_of_an_open_session_may_hide_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If nothing after a bad header shows how far a session went, the count is a lower bound."""
    (tmp_path / "journal").mkdir()
    journal = journal_in(tmp_path / "journal", segment_bytes=1 << 20)
    one, two = a_session(1), a_session(2)
    journal.commit([one.opening(), two.opening(), one.more(5), two.more(5)])
    journal.commit([one.decide(), two.decide()])
    journal.commit([one.more(5)])
    journal.commit([two.more(5)])
    journal.commit([two.decide()])
    journal.close()
    segment = last_segment(tmp_path / "journal", 1)
    shrink(segment)
    flip(segment, events_frame(segment, 1)[1] + 9)
    code, said = recovered(tmp_path / "journal", tmp_path / "out", capsys)
    assert code == ExitCode.DATA_LOSS
    assert by_session(said)["s1"]["counts"]["uncertain"]
    assert by_session(said)["s2"]["whole"]
    assert by_session(said)["s1"]["counts"]["kept"] == 5


def test_decisions_after_damage_do_not_give_the_number_of_lost_events(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five of the ten lost events were decided later: five are certainly lost, and perhaps more."""
    (tmp_path / "journal").mkdir()
    journal = journal_in(tmp_path / "journal", segment_bytes=1 << 20)
    one = a_session(1)
    journal.commit([one.opening(), one.more(5)])
    bad = [journal.commit([one.more(5)])[0] for _ in range(2)]
    journal.commit([one.decide(10)])
    journal.close()
    segment = last_segment(tmp_path / "journal", 1)
    shrink(segment)
    for position in bad:
        flip(segment, position.offset)
    code, said = recovered(tmp_path / "journal", tmp_path / "out", capsys)
    counts = by_session(said)["s1"]["counts"]
    assert (code, counts["kept"], counts["lost"], counts["uncertain"]) == (ExitCode.DATA_LOSS, 5, 5, True)


@pytest.mark.parametrize("damage", [None, damaged_body], ids=["sound", "damaged"])
def test_each_part_of_a_rotated_session_is_recovered_independently(
    damage: Callable[[Path], None] | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part has its own supervisor, so damage to the first part does not affect the second."""
    journal = tmp_path / "journal"
    written = write_sessions(journal, sessions=1, batches=16, rotate_after=10, segment_bytes=8192)
    if damage is not None:
        damage(journal)
    code, said = recovered(journal, tmp_path / "out", capsys)
    assert code == (ExitCode.OK if damage is None else ExitCode.DATA_LOSS)
    assert [(one["part"], one["ended"], one["whole"]) for one in said] == [
        (1, "rotated", damage is None),
        (2, "complete", True),
    ]
    ids = written["s1"].ids
    check_account(said[0], ids[:50])
    check_account(said[1], ids[50:])
    assert Path(said[1]["bundle"]).name == "s1~2.capture.json"
    assert json.loads((tmp_path / "out" / "g" / "s1~2.manifest.json").read_bytes())["first_event"] == 50


def published(state: Path, session: Written, bundle: Path, digest: str) -> None:
    """Append to the journal that a session's bundle is durable."""
    journal = journal_in(state / "journal", segment_bytes=1 << 20)
    body = encode_body(Publication(1, str(bundle), "", digest, final=True))
    journal.commit([PendingFrame(FrameKind.PUBLISHED, session.number, 1, 1, body)])
    journal.close()


def test_a_published_bundle_is_recovered_only_if_missing_or_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The journal, if it still has the session, is the second copy."""
    state = tmp_path / "state"
    written = write_sessions(state / "journal", sessions=1, segment_bytes=1 << 20)
    bundle = tmp_path / "moved away" / "g" / "s1.capture.json"
    _, (said,) = recovered(state, tmp_path / "out", capsys)
    text = Path(said["bundle"]).read_bytes()
    published(state, written["s1"], bundle, hashlib.sha256(text).hexdigest())
    beside = state / "bundles" / "g" / "s1.capture.json"
    beside.parent.mkdir(parents=True)
    beside.write_bytes(text)
    code, (said,) = recovered(state, tmp_path / "two", capsys)
    assert (code, said["ended"], said["bundle"]) == (0, "published", str(beside))
    beside.write_bytes(text[:-1])
    code, (said,) = recovered(state, tmp_path / "three", capsys)
    assert (code, said["ended"], Path(said["bundle"]).read_bytes()) == (0, "complete", text)
    beside.unlink()
    compressed = beside.with_name(beside.name + ".zst")
    compressed.write_bytes(zstandard.ZstdCompressor().compress(text))
    code, (said,) = recovered(state, tmp_path / "three and a half", capsys)
    assert (code, said["ended"], said["bundle"]) == (0, "published", str(compressed))
    compressed.unlink()
    code, (said,) = recovered(state, tmp_path / "four", capsys)
    assert (code, said["ended"], Path(said["bundle"]).read_bytes()) == (0, "complete", text)
    damaged_body_of = events_frame(last_segment(state / "journal", 1), 1, 3)[1]
    flip(last_segment(state / "journal", 1), damaged_body_of + 90)
    code, (said,) = recovered(state, tmp_path / "five", capsys)
    assert (said["ended"], said["bundle"]) == ("published", str(bundle))


def test_a_journal_of_a_newer_version_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 1, and the message says which program to use."""
    write_sessions(tmp_path / "journal", segment_bytes=1 << 20)
    append_frame(segment_path(tmp_path / "journal", 1), FrameKind.EVENTS, 1, version=3)
    assert app.run(["recover", str(tmp_path / "journal"), "-o", str(tmp_path / "out")]) == ExitCode.FAILED
    assert "start the newer ergo-capture that wrote it" in capsys.readouterr().err


def test_text_output_has_a_line_per_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last line is about the journal."""
    write_sessions(tmp_path / "journal")
    damaged_body(tmp_path / "journal")
    assert app.run(["recover", str(tmp_path / "journal"), "-o", str(tmp_path / "out")]) == ExitCode.DATA_LOSS
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{tmp_path}/out/g/s1.capture.json: session s1, part 1: ")
    assert lines[1].startswith("  it ends there because ")
    assert lines[-1].endswith("2 parts of sessions, 1 damaged stretches, 0 bytes torn (never acknowledged)")
