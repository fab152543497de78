"""``status``, ``metrics``, ``reload``, ``flush``, ``tap`` and ``shutdown`` with a running daemon."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from tests.daemons import COMMAND, PATIENCE, DaemonProcess, command, command_environment, event, short_directory

from ergo_capture.cli.support.control_connection import why_away
from ergo_capture.cli.support.output import milliseconds, size, span
from ergo_capture.cli.support.status_view import Rates, decode_status, whole_view
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.version import PROGRAM

EVENTS = "".join(json.dumps(event(f"e{n}", n)["event"]) + "\n" for n in range(5))


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    """Run one daemon for all tests that do not stop it."""
    with short_directory() as place, DaemonProcess(place, place / "state") as running:
        yield running.start()


def asked(daemon: DaemonProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command against the daemon, and return its result."""
    return command(*arguments, "--socket", str(daemon.socket))


def test_status_in_a_pipe_cuts_no_line(daemon: DaemonProcess) -> None:
    """It prints no control sequences either."""
    with background("send", "-", "--socket", str(daemon.socket), "-q") as sending:
        assert sending.stdin is not None
        sending.stdin.write(EVENTS)
        sending.stdin.flush()
        name = one_that_decided(daemon, 5)
        done = asked(daemon, "status")
        sending.stdin.close()
        assert sending.wait(PATIENCE) == 0
    assert (done.returncode, done.stderr) == (0, "")
    assert "serving" in done.stdout
    assert name in done.stdout
    assert "\x1b" not in done.stdout
    assert "…" not in done.stdout


def one_that_decided(daemon: DaemonProcess, count: int) -> str:
    """Return the id of the first session with that many decisions, once there is one."""
    while True:
        for session in json.loads(asked(daemon, "status", "--json").stdout)["running"]["sessions"]:
            if session["decided"] == count:
                return str(session["session"])


def test_status_as_json_has_every_figure(daemon: DaemonProcess) -> None:
    """The JSON is for programs."""
    status = json.loads(asked(daemon, "status", "--json").stdout)
    assert status["phase"] == "serving"
    assert status["socket"] == str(daemon.socket)
    assert {"writer", "commits", "journal", "memory", "engines"} <= status["running"].keys()


def test_metrics_prints_the_prometheus_format(daemon: DaemonProcess) -> None:
    """Nothing is printed before or after it."""
    done = asked(daemon, "metrics")
    assert done.returncode == 0
    assert done.stdout.startswith("# HELP")
    names = {family.name for family in text_string_to_metric_families(done.stdout)}
    assert "ergo_capture_commit_seconds" in names


def test_reload_lists_applied_settings_and_exits_78_for_a_bad_file(daemon: DaemonProcess) -> None:
    """The daemon's message and hint are printed."""
    daemon.config.write_text("[limits]\nmax_clients = 9\n[socket]\nbacklog = 9\n")
    done = asked(daemon, "reload")
    assert done.stdout == "applied limits.max_clients\nneeds a restart: socket.backlog\n"
    daemon.config.write_text("[limits]\nmax_client = 9\n")
    bad = asked(daemon, "reload")
    assert (bad.returncode, bad.stdout) == (78, "")
    assert "max_client" in bad.stderr
    assert "Try: did you mean `max_clients`?" in bad.stderr
    daemon.config.write_text("")
    assert asked(daemon, "reload").returncode == 0
    assert asked(daemon, "reload").stdout == "nothing has changed\n"


def test_tap_prints_decisions_until_the_session_ends(daemon: DaemonProcess) -> None:
    """Each has a line; the last line says how the session ended, and the exit code is 0."""
    with background("send", "-", "--socket", str(daemon.socket), "-q") as sending:
        assert sending.stdin is not None
        sending.stdin.write(EVENTS)
        sending.stdin.flush()
        session = one_that_decided(daemon, 5)
        with tap(daemon, session) as tapping:
            late = {"event_id": "late\x1b[31m", "kind": "Pump", "at": {"secs": 9, "nanos": 500_000_000}}
            sending.stdin.write(json.dumps(late) + "\n")
            sending.stdin.close()
            assert sending.wait(PATIENCE) == 0
            assert tapping.wait(PATIENCE) == 0
            assert tapping.stdout is not None
            lines = tapping.stdout.read().splitlines()
    assert lines[0].split("  ") == [session, "5", "9.5 s", "Pump", r"'late\x1b[31m'", "Defer"]
    assert lines[1:] == ["the session has ended: complete"]


def test_flush_without_sessions_prints_nothing(daemon: DaemonProcess) -> None:
    """An unknown session is an error."""
    done = asked(daemon, "flush")
    assert (done.returncode, done.stdout) == (0, "")
    missing = asked(daemon, "flush", "nobody")
    assert missing.returncode == 1
    assert "session 'nobody' is not open" in missing.stderr


@pytest.mark.parametrize("name", ["status", "metrics", "reload", "flush", "shutdown"])
def test_a_missing_daemon_is_an_error_with_a_hint(name: str) -> None:
    """Exit code 1; no traceback, nothing on standard output."""
    with short_directory() as place:
        done = command(name, "--socket", str(place / "capture.sock"))
        assert (done.returncode, done.stdout) == (1, "")
        assert f"Error: ask the daemon at '{place}/control.sock': no daemon is there" in done.stderr
        assert "Try: start it with `ergo-capture serve`" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_killed_daemon_has_its_own_message() -> None:
    """Its socket still exists."""
    with short_directory() as place, DaemonProcess(place, place / "state") as dead:
        dead.start().kill()
        done = asked(dead, "status")
        assert done.returncode == 1
        assert "no daemon listens there any more" in done.stderr


@pytest.mark.parametrize(
    ("error", "reason", "hint"),
    [
        (PermissionError(13, "Permission denied"), "permission denied", "as root"),
        (TimeoutError(), "it does not answer", "its log"),
        (ConnectionResetError(), "it has hung up", "daemon's log"),
        (OSError(5, "Input/output error"), "Input/output error", "ergo-capture serve"),
    ],
)
def test_each_connection_error_has_a_reason_and_a_hint(error: OSError, reason: str, hint: str) -> None:
    """The reason says what is wrong, and the hint what to do about it."""
    said, advice = why_away(error)
    assert said == reason
    assert hint in advice


def test_shutdown_returns_when_the_daemon_has_ended() -> None:
    """The process ends by itself with exit code 0."""
    with short_directory() as place, DaemonProcess(place, place / "state") as running:
        running.start()
        done = asked(running, "shutdown")
        assert (done.returncode, done.stdout) == (0, "")
        assert running.process is not None
        assert running.process.wait(PATIENCE) == 0


def taps_begun(daemon: DaemonProcess) -> int:
    """Return how many taps the daemon has been asked for."""
    return daemon.log.read_text().count('"command": "tap"')


@contextmanager
def tap(daemon: DaemonProcess, of: str) -> Iterator[subprocess.Popen[str]]:
    """Run a tap in the background; wait until the daemon has received its request."""
    already = taps_begun(daemon)
    with background("tap", of, "--socket", str(daemon.socket)) as tapping:
        while taps_begun(daemon) == already:
            assert tapping.poll() is None
            time.sleep(0.01)
        yield tapping


@contextmanager
def background(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command in the background; kill it at the end."""
    pipe = subprocess.PIPE
    running = subprocess.Popen(
        [*COMMAND, *arguments], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=command_environment()
    )
    with running:
        try:
            yield running
        finally:
            running.kill()


def test_a_closed_pipe_ends_a_tap(daemon: DaemonProcess) -> None:
    """`tap | head -1` does not run until the next decision; it exits 141."""
    with tap(daemon, "default") as tapping:
        assert tapping.stdout is not None
        assert tapping.stderr is not None
        assert asked_to_send(daemon) == 0
        tapping.stdout.readline()
        tapping.stdout.close()
        assert tapping.wait(PATIENCE) == 141
        assert tapping.stderr.read() == ""


def asked_to_send(daemon: DaemonProcess) -> int:
    """Return the exit code of sending five events in a new session."""
    return command("send", "-", "--socket", str(daemon.socket), "-q", input=EVENTS).returncode


def test_ctrl_c_ends_a_tap_quietly(daemon: DaemonProcess) -> None:
    """Exit code 130 and no traceback."""
    with tap(daemon, "default") as tapping:
        tapping.send_signal(signal.SIGINT)
        _, complaint = tapping.communicate(timeout=PATIENCE)
        assert (tapping.returncode, complaint) == (130, "")


# --- layout ---


def status(**changes: object) -> bytes:
    """Return a status with a session, as JSON."""
    histogram = {"bounds": [0.001, 0.01], "counts": [9, 1, 0], "sum": 0.01}
    session = {"graph": "g", "state": "open", "owned": True, "admitted": 10, "accepted": 10, "decided": 4}
    session |= {"session": "s", "deferred": 2, "queued_bytes": 2048, "part": 1}
    writer: dict[str, Any] = {
        "queued": 0,
        "queued_bytes": 0,
        "batches": 10,
        "frames": 20,
        "bytes_written": 4096,
        "events": 10,
    }
    writer |= {"decisions": 4, "last_commit_seconds": 0.0002, "refused_batches": 0, "committing": False}
    writer |= {"oldest_undurable_seconds": 0.0, "full": False, "failed": None}
    journal = {"segments": 2, "bytes": 128 << 20, "batch": 1, "segment": 1, "segment_offset": 9, "failed": None}
    totals = ("clients", "sessions_opened", "sessions_resumed", "sessions_finished", "bundles_published")
    whole = {
        "program": "ergo-capture 1",
        "pid": 7,
        "phase": "serving",
        "doing": "",
        "uptime_seconds": 10.0,
        "socket": "/s",
        "state": "/var/s",
        "clients": 1,
        "max_clients": 9,
        "disk_free_bytes": 1 << 40,
        "refusals": {"limit": 2, "bad_frame": 0},
        "totals": dict.fromkeys(
            [*totals, "bundles_pruned", "bundles_pruned_bytes", "decisions_tapped", "decisions_skipped"], 0
        ),
        "running": {
            "sessions": [session],
            "quarantined": {},
            "writer": writer,
            "journal": journal,
            "engines": [{"graph": "g", "engine": "process", "up": False, "figures": {"restarts": 3}}],
            "commits": dict.fromkeys(("seconds", "bytes", "events"), histogram),
            "memory": {},
            "shutdown_waits_for": ["session s: 6 events to be decided"],
        },
    }
    return json.dumps({**whole, **changes}).encode()


def seen(text: bytes, rates: Rates | None = None, width: int = 160, rows: int | None = None) -> str:
    """Return a status as it is shown, without colours."""
    console = Console(width=width, highlight=False, color_system=None)
    with console.capture() as shown:
        console.print(whole_view(decode_status(text), rates, columns=width, rows=rows))
    return shown.get()


def test_lag_refusals_engines_and_waits_are_shown() -> None:
    """An operator has to act on each of them."""
    text = seen(status())
    assert "limit 2" in text
    assert "bad_frame" not in text
    assert "g: process (restarts=3) away" in text
    assert "p50 up to 1.00 ms, p99 up to 10 ms" in text
    row = next(line for line in text.splitlines() if line.lstrip().startswith("s "))
    assert row.split() == ["s", "g", "open", "yes", "10", "4", "6", "2", "2", "KiB", "1"]
    assert "a shutdown would wait for\n  session s: 6 events to be decided" in text


def test_what_will_never_be_decided_is_shown() -> None:
    """The events are: refused, the one that interrupted a run, and those left over after it."""
    whole = json.loads(status())
    (session,) = whole["running"]["sessions"]
    assert "refused by" not in seen(json.dumps(whole).encode())
    assert "4 decided since the start" in seen(json.dumps(whole).encode())
    session |= {"refused": 1, "interrupted_by": "context_full", "left_over": 6}
    whole["running"]["fates"] = {"g": {"refused": 1, "left_over": 4}, "h": {"refused": 0, "left_over": 2}}
    text = seen(json.dumps(whole).encode())
    assert "10 accepted, 4 decided (1 refused), 6 left over since the start" in text
    assert "s: 1 event refused by the adapter, interrupted (context_full), 6 events left over" in text


def test_each_graphs_engine_has_a_line() -> None:
    """Those that are away first; episodes that failed are counted; of many graphs the first twenty are shown."""
    whole = json.loads(status())
    whole["running"]["engines"] = [
        {"graph": f"g{number}", "engine": "process", "up": number != 7, "figures": {}} for number in range(8)
    ]
    whole["running"]["episodes"] = {"g3": {"Completed": 9, "Failed(RuntimeError)": 4, "Failed(NetworkTimeout)": 1}}
    said = seen(json.dumps(whole).encode()).splitlines()
    first = next(place for place, line in enumerate(said) if line.startswith("engines"))
    assert [line.removeprefix("engines").strip() for line in said[first : first + 8]] == [
        "g7: process away",
        *(f"g{number}: process" + (" 5 episodes failed" if number == 3 else "") for number in range(7)),
    ]
    whole["running"]["engines"] *= 4
    assert "and 12 more graphs" in seen(json.dumps(whole).encode())


def test_what_retention_holds_back_is_shown() -> None:
    """Bundles are held back after a start, after a jump of the clock, and if their times cannot be right."""
    text = seen(status(retention={"ages_held_seconds": 540.0, "suspects": 2}))
    assert "no bundle goes by its age for 9m: " in text
    assert "2 bundles with a time that cannot be right" in text
    assert "retention" not in seen(status(retention={"ages_held_seconds": 0.0, "suspects": 0}))
    assert "retention" not in seen(status())


def test_a_starting_daemon_shows_its_progress() -> None:
    """There are no sessions yet; a disk that does not answer is reported."""
    text = seen(status(running=None, phase="starting", doing="recovering: 3 of 9 sessions", disk_free_bytes=None))
    assert "starting (recovering: 3 of 9 sessions)" in text
    assert "does not answer" in text


def test_failures_are_shown() -> None:
    """A failed journal, a full disk, a quarantined session."""
    whole = json.loads(status())
    whole["running"]["writer"] |= {"failed": "append to journal: I/O error", "full": True}
    whole["running"]["quarantined"] = {"q1": "bad frame at 9"}
    text = seen(json.dumps(whole).encode())
    assert "the journal has failed: append to journal: I/O error" in text
    assert "the disk is full" in text
    assert "quarantined q1: bad frame at 9" in text


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_a_narrow_screen_drops_columns_and_cuts_nothing(width: int) -> None:
    """The session and its lag are dropped last."""
    whole = json.loads(status())
    whole["running"]["sessions"][0] |= {"session": "20261123T134500Z-1-9c4ef0aa", "admitted": 123_460}
    lines = seen(json.dumps(whole).encode(), width=width).splitlines()
    (row,) = (line for line in lines if "20261123T134500Z-1-9c4ef0aa" in line and "shutdown" not in line)
    assert "123,456" in row
    assert "…" not in row
    assert all(len(line) <= width for line in lines)
    assert any("deferred" in line for line in lines) == (width >= 80)


def test_a_short_screen_shows_the_sessions_with_the_largest_lag() -> None:
    """The number of the other sessions is shown too."""
    whole = json.loads(status())
    (session,) = whole["running"]["sessions"]
    sessions = [session | {"session": f"s{lag}", "admitted": 4 + lag} for lag in (1, 9, 5)]
    whole["running"]["sessions"] = sessions
    text = seen(json.dumps(whole).encode(), rows=2)
    assert text.index("s9") < text.index("s5")
    assert "s1 " not in text
    assert "and 1 more session\n" in text


def test_hostile_names_are_shown_as_text() -> None:
    """Neither markup nor control characters in the name of a session or an engine take effect."""
    whole = json.loads(status())
    whole["running"]["quarantined"] = {"[red]x[/nonsense]": "[/]"}
    assert "[red]x[/nonsense]: [/]" in seen(json.dumps(whole).encode())


def test_rates_use_the_daemons_clock() -> None:
    """There are none between statuses of two daemons."""
    before, after = decode_status(status()), json.loads(status())
    after["uptime_seconds"] = 12.0
    after["running"]["writer"] |= {"events": 30, "decisions": 24, "bytes_written": 8192}
    after["running"]["sessions"][0]["accepted"] = 30
    after["running"]["commits"]["seconds"] = {"bounds": [0.001, 0.01], "counts": [9, 5, 0], "sum": 0.03}
    rates = Rates.between(before, decode_status(json.dumps(after).encode()))
    assert rates is not None
    assert (rates.events, rates.decisions, rates.bytes, rates.commits) == (10, 10, 2048, 2)
    assert rates.commit_seconds == pytest.approx(0.005)
    assert rates.by_session == {"s": 10}
    assert "10/s accepted" in seen(json.dumps(after).encode(), rates)
    after["pid"] = 8
    assert Rates.between(before, decode_status(json.dumps(after).encode())) is None
    assert Rates.between(before, before) is None


def test_the_reasons_of_failed_and_delayed_sessions_are_shown() -> None:
    """They are not only in the log."""
    said = json.loads(status())
    said["running"]["sessions"][0] |= {"failure": "Permission denied", "delayed_by": "No space left on device"}
    text = seen(json.dumps(said).encode())
    assert "s has failed: Permission denied" in text
    assert "a bundle of s waits for room: No space left on device" in text


def test_a_daemon_that_was_not_restarted_after_an_upgrade_is_told_of() -> None:
    """It runs another version than the one that is installed."""
    installed = f"{PROGRAM} is installed: restart the daemon to run it"
    said = json.loads(status())
    assert installed in seen(json.dumps(said | {"program": "ergo-capture 0.1.0"}).encode())
    assert installed not in seen(json.dumps(said | {"program": PROGRAM}).encode())


def test_a_status_of_another_version_is_refused() -> None:
    """The error has a hint and no traceback."""
    with pytest.raises(ErgoCaptureError) as refused:
        decode_status(b'{"program": 1}')
    assert "another version" in (refused.value.hint or "")


def test_quantities_have_readable_units() -> None:
    """Sizes are binary, latencies in milliseconds, and a time span has its two largest units."""
    assert [size(n) for n in (0, 1023, 1536, 64 << 20, 3 << 40)] == ["0 B", "1,023 B", "1.5 KiB", "64 MiB", "3 TiB"]
    assert [milliseconds(s) for s in (0.00021, 0.0125, 2.5)] == ["0.21 ms", "12 ms", "2,500 ms"]
    assert [span(s) for s in (0, 59.9, 3_700, 90_061)] == ["0s", "59s", "1h 1m", "1d 1h"]


def test_the_control_path_follows_the_configuration(tmp_path: Path) -> None:
    """The path is beside the named socket, or the one in the file."""
    from ergo_capture.cli.support.control_connection import control_path

    file = tmp_path / "config.toml"
    file.write_text('[control]\npath = "/run/x/ask.sock"\n')
    assert control_path("", file) == Path("/run/x/ask.sock")
    assert control_path("/tmp/a/capture.sock", file) == Path("/run/x/ask.sock")
    assert control_path("/tmp/a/capture.sock", None) == Path("/tmp/a/control.sock")


def test_a_stopped_service_is_told_from_a_missing_daemon_and_is_not_started() -> None:
    """Under systemd something listens on the capture socket, and nothing on the control socket; nobody connects."""
    with short_directory() as place, socket.socket(socket.AF_UNIX) as held:
        held.bind(str(place / "capture.sock"))
        held.listen()
        held.setblocking(False)
        for name in ("status", "metrics", "reload", "flush", "shutdown"):
            done = command(name, "--socket", str(place / "capture.sock"))
            assert done.returncode == 1
            assert f"the daemon is stopped; systemd listens on '{place}/capture.sock'" in done.stderr
            assert "Try: start it with `systemctl start ergo-capture`" in done.stderr
        with pytest.raises(BlockingIOError):
            held.accept()
        assert "the daemon is stopped" not in command("status", "--socket", str(place / "other.sock")).stderr
