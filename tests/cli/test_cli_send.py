"""``ergo-capture send``: forms of input, rejected events, errors, restarts of the daemon."""

from __future__ import annotations

import asyncio
import gzip
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.daemons import COMMAND, DaemonProcess, Terminal, command, command_environment, event, plain, short_directory
from tests.shared import shared

from ergo_capture import decode_bundle
from ergo_capture.cli.support.event_input import EventLines
from ergo_capture.cli.support.sender import Progress
from ergo_capture.config import control_socket_beside


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    """Run one daemon for all tests of this file; each opens its own session."""
    with short_directory() as place, DaemonProcess(place, place / "state") as running:
        yield running.start()


def sent(daemon: DaemonProcess, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``send`` against the daemon, and return its result."""
    return command("send", *arguments, "--socket", str(daemon.socket), input=given)


def ids_in(summary: dict[str, Any]) -> list[str]:
    """Return the event ids of the bundle that a summary names."""
    return [record.event_id for record in decode_bundle(Path(summary["bundle"]).read_bytes()).events]


def lines(*frames: Any) -> str:
    """Return JSON Lines."""
    return "".join(json.dumps(frame) + "\n" for frame in frames)


BARE = [event(f"e{number}", number)["event"] for number in range(5)]


@pytest.mark.parametrize(
    "text",
    [
        lines(*BARE),
        lines(*({"type": "event", "event": one} for one in BARE)),
        lines({"type": "events", "events": BARE[:3]}, {"type": "events", "events": BARE[3:]}),
        lines({"type": "hello", "protocol": "ergo-driver.v0"}, *({"type": "event", "event": e} for e in BARE))
        + lines({"type": "end"}),
        lines(*BARE).rstrip("\n"),
        lines(*BARE).replace("\n", "\n\n"),
    ],
    ids=["bare events", "event frames", "events frames", "a driver's stream", "no newline at the end", "empty lines"],
)
def test_every_form_of_input_gives_the_same_events(daemon: DaemonProcess, text: str) -> None:
    """Bare events, frames, or a whole ``ergo-driver.v0`` stream, through a pipe."""
    ran = sent(daemon, "-", "--json", given=text)
    assert ran.returncode == 0, ran.stderr
    summary = json.loads(ran.stdout)
    assert (summary["events"], summary["decisions"], summary["rejected"]) == (5, 5, 0)
    assert ids_in(summary) == [one["event_id"] for one in BARE]


def test_the_reference_drivers_sample_publishes_one_event(daemon: DaemonProcess) -> None:
    """``ergo-capture send < ergo-driver-sample.jsonl``."""
    ran = sent(daemon, "--json", given=(shared("real") / "ergo-driver-sample.jsonl").read_text())
    assert ran.returncode == 0, ran.stderr
    assert len(ids_in(json.loads(ran.stdout))) == 1


def test_a_gzipped_file_is_recognised_by_its_content(daemon: DaemonProcess, tmp_path: Path) -> None:
    """The name of the file does not matter; labels are in the manifest."""
    file = tmp_path / "events"
    file.write_bytes(gzip.compress(lines(*BARE).encode()))
    ran = sent(daemon, str(file), "--label", "month=2013-01", "--label", "from=JFK", "--json")
    summary = json.loads(ran.stdout)
    assert len(ids_in(summary)) == 5
    assert json.loads(Path(summary["manifest"]).read_text())["labels"] == {"month": "2013-01", "from": "JFK"}


def test_a_truncated_gzip_file_is_an_error(daemon: DaemonProcess, tmp_path: Path) -> None:
    """Exit code 1, the file and the reason; no traceback."""
    file = tmp_path / "events.gz"
    file.write_bytes(gzip.compress(lines(*BARE).encode())[:-12])
    ran = sent(daemon, str(file))
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"Error: read events from '{file}': ")
    assert "Traceback" not in ran.stderr


def test_rejected_events_are_printed_and_the_others_captured(daemon: DaemonProcess) -> None:
    """Exit code 3; standard error has the reason of each rejection."""
    ran = sent(daemon, "-", given=lines(BARE[0], BARE[1], BARE[0]) + "not json\n" + lines(BARE[2]))
    assert ran.returncode == 3
    assert "rejected 'e0' in line 3: duplicate_event_id" in ran.stderr
    assert "bad_frame" in ran.stderr
    assert "rejected the line 'not json' in line 4: bad_frame" in ran.stderr
    assert "2 events rejected" in ran.stderr
    assert "an event that was accepted need not be sent again" in ran.stderr
    assert ran.stdout.startswith("3 events, 3 decisions")


@pytest.mark.parametrize(
    "line",
    [{"id": "e", "kind": "Command"}, {"event_id": "", "kind": "Command"}, {"capture_version": "v3"}, {"type": "other"}],
    ids=["no event id", "an empty event id", "a bundle", "another frame"],
)
def test_a_line_that_is_no_event_is_rejected(daemon: DaemonProcess, line: dict[str, Any]) -> None:
    """The message quotes the beginning of the line, and the exit code is 3."""
    ran = sent(daemon, "-", given=lines(BARE[0], line, BARE[1]))
    assert ran.returncode == 3, ran.stderr
    assert ran.stdout.startswith("2 events, 2 decisions")
    assert ran.stderr.startswith("rejected ")
    assert "1 event rejected" in ran.stderr


def test_a_bad_event_in_an_events_frame_affects_no_other(daemon: DaemonProcess) -> None:
    """Each event of an ``events`` frame is sent, and counted, on its own."""
    ran = sent(daemon, "-", "--json", given=lines({"type": "events", "events": [BARE[0], 3, BARE[1]]}))
    assert ran.returncode == 3, ran.stderr
    summary = json.loads(ran.stdout)
    assert (summary["rejected"], ids_in(summary)) == (1, ["e0", "e1"])


def test_a_line_that_is_too_long_is_rejected_without_being_sent(daemon: DaemonProcess) -> None:
    """The daemon's welcome says how long one may be. The line is named, and the events around it are captured."""
    ran = sent(daemon, "-", given=lines(BARE[0]) + "x" * (3 << 20) + "\n" + lines(BARE[1]))
    assert ran.returncode == 3
    assert "in line 2: too_large: a line may have 1,048,576 bytes" in ran.stderr
    assert "1 event rejected" in ran.stderr
    assert ran.stdout.startswith("2 events, 2 decisions")


def test_closed_standard_input_is_an_error(daemon: DaemonProcess) -> None:
    """``send - <&-`` prints a message and no traceback."""
    ran = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *COMMAND, "send", "--socket", str(daemon.socket)],
        capture_output=True, text=True, env=command_environment(), timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr.startswith("Error: read events from standard input: ")


def test_a_path_that_cannot_be_a_socket_is_an_error(tmp_path: Path) -> None:
    """The hint is not to start a daemon."""
    file = tmp_path / "file"
    file.touch()
    for path, why in ((file, "it is not a socket"), (tmp_path / ("x" * 120), "path too long")):
        ran = command("send", "-", "--socket", str(path), "--give-up-after", "0", input="")
        assert (ran.returncode, why in ran.stderr) == (1, True), ran.stderr


def test_a_missing_daemon_is_an_error_with_a_hint(tmp_path: Path) -> None:
    """Exit code 1 when the time to give up has passed."""
    ran = command("send", "-", "--socket", str(tmp_path / "no.sock"), "--give-up-after", "0", input="")
    assert ran.returncode == 1
    assert str(tmp_path / "no.sock") in ran.stderr
    assert "Try: " in ran.stderr


def test_empty_input_gives_an_empty_bundle(daemon: DaemonProcess) -> None:
    """It is not an error."""
    ran = sent(daemon, "-", "--json", given="")
    assert (ran.returncode, json.loads(ran.stdout)["events"]) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--label", "nonsense"], "KEY=VALUE"), (["--window", "0"], "--window"), (["--nope"], "--nope")],
    ids=["a label without =", "a window of nothing", "an unknown option"],
)
def test_a_wrong_argument_is_a_usage_error(daemon: DaemonProcess, arguments: list[str], says: str) -> None:
    """Exit code 2, and the argument is named."""
    ran = sent(daemon, "-", *arguments, given="")
    assert ran.returncode == 2
    assert says in plain(ran.stderr)


def test_a_missing_file_is_named(daemon: DaemonProcess, tmp_path: Path) -> None:
    """Exit code 1, before a session is opened."""
    ran = sent(daemon, str(tmp_path / "nothing.jsonl"))
    assert ran.returncode == 1
    assert "nothing.jsonl': No such file or directory" in ran.stderr


def test_an_unknown_graph_is_an_error_that_lists_the_known_ones(daemon: DaemonProcess) -> None:
    """The daemon's message and hint are printed."""
    ran = sent(daemon, "-", "--graph", "nope", given=lines(*BARE))
    assert ran.returncode == 1
    assert "graph 'nope' is not configured" in ran.stderr
    assert "open one of: default" in ran.stderr


async def test_a_long_wait_is_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A daemon on a full disk opens no session until there is space."""
    progress = Progress(EventLines("-"), shown=False)
    with progress.notice("the daemon takes long", after=0.02):
        pass
    assert capsys.readouterr().err == ""
    with progress.notice("the daemon takes long", after=0.02):
        await asyncio.sleep(0.1)
    assert capsys.readouterr().err == "the daemon takes long\n"


def test_waiting_for_a_missing_daemon_is_announced_early(tmp_path: Path) -> None:
    """It is announced after one second, long before send gives up."""
    ran = command("send", "-", "--socket", str(tmp_path / "no.sock"), "--give-up-after", "1.5", input="")
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"no connection to '{tmp_path / 'no.sock'}' yet; ")


def test_a_file_in_the_place_of_the_socket_is_not_waited_for(tmp_path: Path) -> None:
    """No daemon that starts would take its place."""
    (tmp_path / "file").touch()
    ran = command("send", "-", "--socket", str(tmp_path / "file"), input="")
    assert (ran.returncode, ran.stderr.splitlines()[0]) == (
        1,
        f"Error: connect to the daemon at '{tmp_path / 'file'}': it is not a socket",
    )


def test_the_control_socket_refuses_a_client_with_the_reason(daemon: DaemonProcess) -> None:
    """The two sockets lie side by side."""
    ran = command("send", "-", "--socket", str(control_socket_beside(daemon.socket)), input="")
    assert ran.returncode == 1
    assert "not a request of the control socket" in ran.stderr
    assert "clients connect to the capture socket" in ran.stderr


def test_ctrl_c_prints_the_session_to_resume(daemon: DaemonProcess) -> None:
    """Exit code 130; what was acknowledged is durable. The bar counts it while the input says nothing."""
    with (
        Terminal() as terminal,
        subprocess.Popen(
            [*COMMAND, "send", "-", "--socket", str(daemon.socket)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=terminal.end, env=command_environment(),
        ) as sender,
    ):  # fmt: skip
        assert sender.stdin is not None
        sender.stdin.write(lines(*BARE).encode())
        sender.stdin.flush()
        terminal.until("5 events durable")
        sender.send_signal(signal.SIGINT)
        # The pipe stays open: whoever feeds it may have nothing to say for hours.
        assert sender.wait(60) == 130
        terminal.until("interrupted: 5 events durable in session ")


def test_send_survives_a_restart_of_the_daemon() -> None:
    """P1: every event is in the bundle exactly once, and the summary counts the reconnection."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        daemon.start()
        arguments = ["send", "-", "--socket", str(daemon.socket), "--json"]
        with subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=command_environment(),
        ) as sender:  # fmt: skip
            assert sender.stdin is not None
            assert sender.stdout is not None
            sender.stdin.write(lines(*(event(f"a{n}", n)["event"] for n in range(3000))).encode())
            sender.stdin.flush()
            daemon.until_logged("session.opened")
            daemon.kill()
            daemon.start()
            sender.stdin.write(lines(*(event(f"b{n}", n)["event"] for n in range(3000))).encode())
            sender.stdin.close()
            summary = json.loads(sender.stdout.read())
            assert sender.wait(30) == 0
        assert summary["reconnects"] >= 1
        assert ids_in(summary) == [f"a{n}" for n in range(3000)] + [f"b{n}" for n in range(3000)]


def test_what_a_resumed_session_holds_is_no_loss(tmp_path: Path) -> None:
    """Sent again as a whole, a file ends with exit code 0; a duplicate within the file is still rejected."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        daemon.start()
        with socket.socket(socket.AF_UNIX) as wire, wire.makefile("rw") as file:
            wire.connect(str(daemon.socket))
            frames = [
                {"type": "hello", "protocol": "ergo-capture.v1"},
                {"type": "open"},
                *(event(f"e{n}", n) for n in range(3)),
            ]
            file.write(lines(*frames))
            file.flush()
            session = ""
            while (answer := json.loads(file.readline()))["type"] != "ack" or answer["accepted"] < 3:
                session = answer.get("session", session)
        (tmp_path / "events").write_text(lines(*BARE))
        ran = sent(daemon, str(tmp_path / "events"), "--session", session, "--json")
        assert ran.returncode == 0, ran.stderr
        summary = json.loads(ran.stdout)
        assert (summary["already_captured"], summary["accepted"], summary["rejected"]) == (3, 2, 0)
        assert ids_in(summary) == [one["event_id"] for one in BARE]


def test_a_field_that_nobody_reads_is_named_with_its_line(daemon: DaemonProcess) -> None:
    """A misspelt payload would otherwise be lost without a word; the event is captured, so the exit code is 0."""
    ran = sent(daemon, "-", given=lines(BARE[0], BARE[1] | {"paylod": {"x": 1}}))
    assert ran.returncode == 0, ran.stderr
    assert "note on line 2: unknown field 'paylod'" in ran.stderr
    assert "fields of an event are event_id, kind, at, payload" in ran.stderr


def test_a_rejection_says_line_and_hint(daemon: DaemonProcess) -> None:
    """Blank lines count, as an editor counts them."""
    ran = sent(daemon, "-", given=lines(BARE[0]) + "\n\n" + lines(BARE[1] | {"at": {"secs": 1, "nano": 0}}))
    assert ran.returncode == 3
    assert "rejected 'e1' in line 4: bad_frame" in ran.stderr
    assert "an event is {" in ran.stderr
