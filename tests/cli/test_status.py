"""``status``, ``metrics``, ``reload``, ``flush``, ``tap`` and ``shutdown`` as an operator runs them."""

from __future__ import annotations

import json
import signal
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

from ergo_capture.cli.figures import milliseconds, size, span
from ergo_capture.cli.operator import why_away
from ergo_capture.cli.status_view import Rates, decode_status, whole_view
from ergo_capture.errors import ErgoCaptureError

EVENTS = "".join(json.dumps(event(f"e{n}", n)["event"]) + "\n" for n in range(5))


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    """One daemon for all that do not stop it."""
    with short_directory() as place, DaemonProcess(place, place / "state") as running:
        yield running.start()


def asked(daemon: DaemonProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command, of that daemon."""
    return command(*arguments, "--socket", str(daemon.socket))


def test_status_shows_the_daemon_in_words_whole_also_when_piped(daemon: DaemonProcess) -> None:
    """No line is cut for the want of a terminal, and no control sequence is in it."""
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
    """The id of the first session with that many decisions, as soon as there is one."""
    while True:
        for session in json.loads(asked(daemon, "status", "--json").stdout)["running"]["sessions"]:
            if session["decided"] == count:
                return str(session["session"])


def test_status_as_json_holds_every_figure(daemon: DaemonProcess) -> None:
    """Which is what programs should read."""
    status = json.loads(asked(daemon, "status", "--json").stdout)
    assert status["phase"] == "serving"
    assert status["socket"] == str(daemon.socket)
    assert {"writer", "commits", "journal", "memory", "engines"} <= status["running"].keys()


def test_metrics_prints_what_prometheus_reads(daemon: DaemonProcess) -> None:
    """Nothing before it and nothing behind it."""
    done = asked(daemon, "metrics")
    assert done.returncode == 0
    assert done.stdout.startswith("# HELP")
    names = {family.name for family in text_string_to_metric_families(done.stdout)}
    assert "ergo_capture_commit_seconds" in names


def test_reload_names_what_took_effect_and_a_bad_file_is_exit_78(daemon: DaemonProcess) -> None:
    """With the daemon's own sentence and hint."""
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
    """One line each, from now on; the last says how the session ended, and the exit code is 0."""
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
    assert lines[0].split("  ") == [session, "6", "9.5 s", "Pump", r"'late\x1b[31m'", "Defer"]
    assert lines[1:] == ["the session has ended: complete"]


def test_flush_prints_nothing_where_there_is_no_session(daemon: DaemonProcess) -> None:
    """And says so of a session that is not there."""
    done = asked(daemon, "flush")
    assert (done.returncode, done.stdout) == (0, "")
    missing = asked(daemon, "flush", "nobody")
    assert missing.returncode == 1
    assert "session 'nobody' is not open" in missing.stderr


@pytest.mark.parametrize("name", ["status", "metrics", "reload", "flush", "shutdown"])
def test_where_there_is_no_daemon_a_sentence_and_a_hint_say_so(name: str) -> None:
    """Exit 1; no traceback, nothing on standard output."""
    with short_directory() as place:
        done = command(name, "--socket", str(place / "capture.sock"))
        assert (done.returncode, done.stdout) == (1, "")
        assert f"Error: ask the daemon at '{place}/control.sock': no daemon is there" in done.stderr
        assert "Try: start it with `ergo-capture serve`" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_daemon_that_was_killed_is_told_from_one_that_never_was() -> None:
    """Its socket is still there."""
    with short_directory() as place, DaemonProcess(place, place / "state") as dead:
        dead.start().kill()
        done = asked(dead, "status")
        assert done.returncode == 1
        assert "no daemon listens there any more" in done.stderr


@pytest.mark.parametrize(
    ("error", "reason", "hint"),
    [
        (PermissionError(13, "Permission denied"), "this user may not", "as root"),
        (TimeoutError(), "it does not answer", "its log"),
        (ConnectionResetError(), "it has hung up", "daemon's log"),
        (OSError(5, "Input/output error"), "Input/output error", "ergo-capture serve"),
    ],
)
def test_each_way_of_not_being_answered_has_its_words(error: OSError, reason: str, hint: str) -> None:
    """What is wrong, and what to do about it."""
    said, advice = why_away(error)
    assert said == reason
    assert hint in advice


def test_shutdown_returns_when_the_daemon_has_gone() -> None:
    """The process ends with 0, by itself."""
    with short_directory() as place, DaemonProcess(place, place / "state") as running:
        running.start()
        done = asked(running, "shutdown")
        assert (done.returncode, done.stdout) == (0, "")
        assert running.process is not None
        assert running.process.wait(PATIENCE) == 0


def taps_begun(daemon: DaemonProcess) -> int:
    """How many taps the daemon has been asked for."""
    return daemon.log.read_text().count('"command": "tap"')


@contextmanager
def tap(daemon: DaemonProcess, of: str) -> Iterator[subprocess.Popen[str]]:
    """A tap in the background, as soon as the daemon has heard of it."""
    already = taps_begun(daemon)
    with background("tap", of, "--socket", str(daemon.socket)) as tapping:
        while taps_begun(daemon) == already:
            assert tapping.poll() is None
            time.sleep(0.01)
        yield tapping


@contextmanager
def background(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command in the background; it does not outlive the test."""
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
    """`tap | head -1` does not stay behind until the next decision; the shell's code says that it was cut short."""
    with tap(daemon, "default") as tapping:
        assert tapping.stdout is not None
        assert tapping.stderr is not None
        assert asked_to_send(daemon) == 0
        tapping.stdout.readline()
        tapping.stdout.close()
        assert tapping.wait(PATIENCE) == 141
        assert tapping.stderr.read() == ""


def asked_to_send(daemon: DaemonProcess) -> int:
    """Exit code of sending five events in a session of their own."""
    return command("send", "-", "--socket", str(daemon.socket), "-q", input=EVENTS).returncode


def test_an_interrupted_tap_says_nothing_more(daemon: DaemonProcess) -> None:
    """Ctrl-C is how it ends: exit 130 and no traceback."""
    with tap(daemon, "default") as tapping:
        tapping.send_signal(signal.SIGINT)
        _, complaint = tapping.communicate(timeout=PATIENCE)
        assert (tapping.returncode, complaint) == (130, "")


# --- what is shown ---


def status(**changes: object) -> bytes:
    """A status with a session, as JSON."""
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
    """A status as it is shown, without colours."""
    console = Console(width=width, highlight=False, color_system=None)
    with console.capture() as shown:
        console.print(whole_view(decode_status(text), rates, columns=width, rows=rows))
    return shown.get()


def test_lag_refusals_engines_and_waits_are_shown() -> None:
    """Whatever an operator has to act on is in plain sight."""
    text = seen(status())
    assert "limit 2" in text
    assert "bad_frame" not in text
    assert "g: process (restarts=3) away" in text
    assert "p50 up to 1.00 ms, p99 up to 10 ms" in text
    row = next(line for line in text.splitlines() if line.lstrip().startswith("s "))
    assert row.split() == ["s", "g", "open", "yes", "10", "4", "6", "2", "2", "KiB", "1"]
    assert "a shutdown would wait for\n  session s: 6 events to be decided" in text


def test_a_daemon_that_starts_shows_what_it_is_at() -> None:
    """There are no sessions yet, and a disk that does not answer is said to."""
    text = seen(status(running=None, phase="starting", doing="recovering: 3 of 9 sessions", disk_free_bytes=None))
    assert "starting (recovering: 3 of 9 sessions)" in text
    assert "does not answer" in text


def test_trouble_is_said_in_words() -> None:
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
    """Whose session it is and how far it lags are the last to go."""
    whole = json.loads(status())
    whole["running"]["sessions"][0] |= {"session": "20261123T134500Z-1-9c4ef0aa", "admitted": 123_460}
    lines = seen(json.dumps(whole).encode(), width=width).splitlines()
    (row,) = (line for line in lines if "20261123T134500Z-1-9c4ef0aa" in line and "shutdown" not in line)
    assert "123,456" in row
    assert "…" not in row
    assert all(len(line) <= width for line in lines)
    assert any("deferred" in line for line in lines) == (width >= 80)


def test_a_short_screen_shows_the_sessions_that_lag_most() -> None:
    """And says how many it leaves out."""
    whole = json.loads(status())
    (session,) = whole["running"]["sessions"]
    sessions = [session | {"session": f"s{lag}", "admitted": 4 + lag} for lag in (1, 9, 5)]
    whole["running"]["sessions"] = sessions
    text = seen(json.dumps(whole).encode(), rows=2)
    assert text.index("s9") < text.index("s5")
    assert "s1 " not in text
    assert "and 1 more session\n" in text


def test_hostile_names_are_shown_as_text() -> None:
    """Neither markup nor anything else that a session or an engine calls itself is obeyed."""
    whole = json.loads(status())
    whole["running"]["quarantined"] = {"[red]x[/nonsense]": "[/]"}
    assert "[red]x[/nonsense]: [/]" in seen(json.dumps(whole).encode())


def test_rates_are_differences_by_the_daemons_own_clock() -> None:
    """Of the same daemon; between two that are not there are none."""
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


def test_another_versions_status_is_refused_with_a_hint() -> None:
    """Not with a traceback."""
    with pytest.raises(ErgoCaptureError) as refused:
        decode_status(b'{"program": 1}')
    assert "another version" in (refused.value.hint or "")


def test_units_are_those_people_read() -> None:
    """Binary sizes, milliseconds, the two largest units of a span."""
    assert [size(n) for n in (0, 1023, 1536, 64 << 20, 3 << 40)] == ["0 B", "1,023 B", "1.5 KiB", "64 MiB", "3 TiB"]
    assert [milliseconds(s) for s in (0.00021, 0.0125, 2.5)] == ["0.21 ms", "12 ms", "2,500 ms"]
    assert [span(s) for s in (0, 59.9, 3_700, 90_061)] == ["0s", "59s", "1h 1m", "1d 1h"]


def test_the_control_path_follows_the_configuration(tmp_path: Path) -> None:
    """Beside the named socket, or as the file says."""
    from ergo_capture.cli.operator import control_path

    file = tmp_path / "config.toml"
    file.write_text('[control]\npath = "/run/x/ask.sock"\n')
    assert control_path("", file) == Path("/run/x/ask.sock")
    assert control_path("/tmp/a/capture.sock", file) == Path("/run/x/ask.sock")
    assert control_path("/tmp/a/capture.sock", None) == Path("/tmp/a/control.sock")
