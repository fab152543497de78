"""``ergo-capture verify``: sound, unsound and diverging bundles."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.bundles import small_bundle
from tests.shared import conformance, shared

from ergo_capture import encode_bundle
from ergo_capture.bundle.proving import checking
from ergo_capture.cli import app
from ergo_capture.cli.support.verification import check
from ergo_capture.errors import ExitCode
from ergo_capture.kernel.effects import ActionEffect, EffectWrite, Value, compute_effect_hash

REAL = shared("real") / "ergo-cli"
SCENARIOS = conformance("scenarios.jsonl")
LIMITED = next(
    line["bundle_compact"]
    for line in SCENARIOS
    if '"Defer"' in line["bundle_compact"] and '"Invoke"' in line["bundle_compact"]
)


def written(tmp_path: Path, text: str | bytes, name: str = "b.capture.json") -> str:
    """Write a bundle file with a text, and return its path."""
    file = tmp_path / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(file)


def verdicts(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return what ``--json`` printed."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# --- sound bundles ---


def test_every_bundle_of_the_reference_verifies(tmp_path: Path) -> None:
    """Each scenario's bundle, in both styles, derives again from its recorded outcomes; except those with repeated ids."""
    for line in SCENARIOS:
        ids = [event["event_id"] for event in line["scenario"]["events"]]
        for style in ("bundle_compact", "bundle_pretty"):
            if style in line:
                result = check(Path(written(tmp_path, line[style])))
                assert result["ok"] is (len(set(ids)) == len(ids)), (line["name"], result)


def test_captures_of_the_real_program_verify(capsys: pytest.CaptureFixture[str]) -> None:
    """Bundles that ``ergo run`` wrote, effects included, are sound; one line prints the counts."""
    files = [str(REAL / name) for name in ("cap_hello.json", "cap_ctx.json")]
    assert app.run(["verify", *files]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{file}: ok, 3 events, 3 decisions derived again" for file in files
    ]


# --- unsound and diverging bundles ---


@pytest.mark.parametrize(
    ("name", "code", "found"),
    [
        (
            "tamper_decision.json",
            4,
            {"index": 1, "event_id": "p1", "field": "decision", "captured": "Skip", "replayed": "Defer"},
        ),
        ("tamper_effect_value.json", 4, {"index": 0, "event_id": "e1", "field": "effect_hash"}),
        ("tamper_payload.json", 1, "payload hash mismatch for event 'e1'"),
        ("tamper_version.json", 1, "unsupported capture version 'v2'"),
    ],
)
def test_tampering_is_found(
    name: str, code: int, found: str | dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The verdict on each changed copy of a real capture names the place, with its exit code."""
    assert app.run(["verify", "--json", str(REAL / name)]) == code
    (verdict,) = verdicts(capsys)
    assert verdict["ok"] is False
    if isinstance(found, str):
        assert verdict["error"] == found
        assert verdict["hint"]
    else:
        assert verdict["divergence"].items() >= found.items()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("decision", "Skip"),
        ("schedule_at", {"secs": 7, "nanos": 1}),
        ("episode_id", 77),
        ("deadline", {"secs": 1, "nanos": 0}),
        ("termination", "Aborted"),
        ("retry_count", 9),
        ("event_id", "another"),
    ],
)
def test_a_changed_field_of_a_decision_is_named(field: str, value: Any, tmp_path: Path) -> None:
    """A record that contradicts the supervisor is a divergence in that field."""
    bundle = json.loads(LIMITED)
    index = next(i for i, record in enumerate(bundle["decisions"]) if record["decision"] == "Defer")
    assert bundle["decisions"][index][field] != value
    bundle["decisions"][index][field] = value
    result = check(Path(written(tmp_path, json.dumps(bundle))))
    assert result["exit"] == ExitCode.DIVERGED
    assert (result["divergence"]["index"], result["divergence"]["field"]) == (index, field)
    assert result["divergence"]["captured"] == value


@pytest.mark.parametrize(("cut", "field"), [("events", "missing"), ("decisions", "extra")])
def test_a_missing_or_extra_decision_is_named(cut: str, field: str, tmp_path: Path) -> None:
    """A decision without its event, or an event without its decision, is a divergence at that place."""
    bundle = json.loads(LIMITED)
    last = len(bundle["decisions"]) - 1
    bundle[cut].pop()
    result = check(Path(written(tmp_path, json.dumps(bundle))))
    assert result["exit"] == ExitCode.DIVERGED
    assert (result["divergence"]["index"], result["divergence"]["field"]) == (last, field)
    assert json.dumps(result["divergence"])


def test_a_repeated_event_id_is_unsound(tmp_path: Path) -> None:
    """The reference's strict replay refuses it too."""
    bundle = json.loads(LIMITED)
    bundle["events"][1] = {**bundle["events"][1], "event_id": bundle["events"][0]["event_id"]}
    result = check(Path(written(tmp_path, json.dumps(bundle))))
    assert result["exit"] == ExitCode.FAILED
    assert "duplicate event_id" in result["error"]


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", LIMITED[:-40], LIMITED + "x", "[" * 100_000, b"\xff", b"\x1f\x8b"]
)
def test_a_file_that_is_no_bundle_is_unsound(
    text: str | bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a bundle, other JSON or no text at all: exit code 1 with the file's name and a hint."""
    file = written(tmp_path, text)
    assert app.run(["verify", file]) == ExitCode.FAILED
    said = capsys.readouterr().out
    assert said.startswith(f"{file}: unsound: read capture bundle '{file}': ")
    assert "\n  try: " in said


def test_verdicts_agree_with_the_reference(tmp_path: Path) -> None:
    """A bundle that the reference cannot read is unsound; one that it replays identically derives again."""
    for line in conformance("bundles.jsonl"):
        verdict = line["verdict"]
        result = check(Path(written(tmp_path, line["bundle_text"])))
        if verdict["parse"] is not None or verdict["validate"] is not None:
            assert result["exit"] == ExitCode.FAILED, line["name"]
        elif verdict.get("compare") is True and "duplicate" not in result.get("error", ""):
            assert result["ok"], (line["name"], result)


# --- several bundles ---


def test_the_worst_verdict_sets_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every bundle is checked; unsound is worse than diverged, in any order."""
    good, diverged, unsound = (
        str(REAL / "cap_ctx.json"),
        str(REAL / "tamper_decision.json"),
        str(tmp_path / "absent.json"),
    )
    assert app.run(["verify", "--json", unsound, diverged, good]) == ExitCode.FAILED
    assert [verdict["ok"] for verdict in verdicts(capsys)] == [False, False, True]
    assert app.run(["verify", diverged, unsound]) == ExitCode.FAILED
    assert app.run(["verify", diverged, good]) == ExitCode.DIVERGED
    assert app.run(["verify", good, good]) == ExitCode.OK


def test_a_divergence_is_printed_with_both_sides(capsys: pytest.CaptureFixture[str]) -> None:
    """Without ``--json`` it is three lines: place, captured, replayed."""
    file = str(REAL / "tamper_decision.json")
    assert app.run(["verify", file]) == ExitCode.DIVERGED
    assert capsys.readouterr().out.splitlines() == [
        f"{file}: diverged at decision 1, event 'p1', field decision",
        '  captured: "Skip"',
        '  replayed: "Defer"',
    ]


# --- floats that the reference misreads ---


def with_number(number: float) -> str:
    """Return a real capture whose one effect writes that number, with the matching hash."""
    bundle = json.loads((REAL / "cap_ctx.json").read_text())
    record = next(record for record in bundle["decisions"] if record["effects"])
    effect = ActionEffect("set_context", (EffectWrite("k", Value(Number=number)),))
    for other in bundle["decisions"]:
        other["effects"] = []
    body = {"kind": effect.kind, "writes": [{"key": "k", "value": {"Number": number}}]}
    record["effects"] = [{"effect": body, "effect_hash": compute_effect_hash(effect)}]
    return json.dumps(bundle)


def test_a_number_that_the_reference_misreads_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """9.773333333333333 of a real capture is sound, with a note that the reference refuses its own file, and the cure."""
    file = written(tmp_path, with_number(9.773333333333333))
    assert app.run(["verify", file]) == 0
    said = capsys.readouterr().out
    assert ": ok, " in said
    assert "note: the reference refuses this bundle (effect_mismatch): it misreads 1 number in effects" in said
    assert "`float_roundtrip`" in said
    assert "9.773333333333333" not in said
    assert app.run(["verify", "--verbose", file]) == 0
    said = capsys.readouterr().out
    assert "it reads 9.773333333333333 in an effect of decision" in said
    assert "as 9.773333333333332" in said


@pytest.mark.parametrize("number", [0.0, -0.0, 1.5, -653212.475585476, 1e16, 1e22, 5e-324, 1.7976931348623157e308])
def test_a_number_that_the_reference_reads_exactly_has_no_note(number: float, tmp_path: Path) -> None:
    """Most numbers are exact."""
    result = check(Path(written(tmp_path, with_number(number))))
    assert (result["ok"], result["notes"]) == (True, [])


@settings(max_examples=60)
@given(st.integers(0, (1 << 64) - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0]))
def test_any_finite_number_can_be_verified(number: float) -> None:
    """Subnormals included: at most one note, and no failure."""
    if number - number != 0:
        return
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        result = check(Path(written(Path(directory), with_number(number))))
    assert result["ok"]
    assert len(result["notes"]) <= 1


def test_several_processes_say_what_one_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The verdicts are in the order of the names, sound and unsound."""
    monkeypatch.setattr(checking, "WORTH_A_PROCESS", 0)
    texts = [encode_bundle(small_bundle(events=count)) for count in range(1, 9)]
    texts[3] = texts[3].replace(b'"episode_id":1', b'"episode_id":7')
    texts[5] = texts[5][:-40]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.capture.json").write_bytes(text)
    said = []
    for jobs in ("1", "2"):
        code = app.run(["verify", "--json", "--jobs", jobs, str(tmp_path)])
        said.append((code, capfd.readouterr().out))
    assert said[0] == said[1]
    assert [json.loads(line)["ok"] for line in said[1][1].splitlines()].count(False) == 2


def test_a_bundle_that_cannot_be_read_is_not_unsound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is unreadable, so nothing is known of the bundle."""
    path = tmp_path / "loop.capture.json"
    path.symlink_to(path)
    assert app.run(["verify", str(path)]) == ExitCode.FAILED
    assert capsys.readouterr().out.startswith(f"{path}: not read: read capture bundle '{path}': ")
