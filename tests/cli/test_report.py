"""``ergo-capture report``: one page that draws a bundle, looked at in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.cli.runs import bundle
from tests.daemons import command

from ergo_capture import (
    CapturingSession,
    Constraints,
    EventTime,
    ExternalEvent,
    ExternalEventKind,
    FaultRuntime,
    MemoryDecisionLog,
    encode_bundle,
)
from ergo_capture.cli import app
from ergo_capture.cli.report_page import report_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="needs chromium")


def dom(page: Path, fragment: str = "") -> str:
    """The page as it is after its script has run; a message on the console fails the test."""
    ran = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1200,900",
            f"--user-data-dir={page.parent}/profile", "--virtual-time-budget=20000", "--dump-dom", f"file://{page}{fragment}",
        ],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert "CONSOLE" not in ran.stderr, ran.stderr
    assert 'data-ready="yes"' in ran.stdout, ran.stdout[:2000] + ran.stderr
    assert "data-error" not in ran.stdout
    return ran.stdout


def rows(text: str) -> list[str]:
    """The event ids of the rows that are shown."""
    return re.findall(r'<td class="id">([^<]*)</td>', text)


def written(path: Path) -> Path:
    """A page of the small run's bundle."""
    path.write_bytes(report_page(bundle(path.with_suffix(".capture.json"), effects=True)))
    return path


@needs_browser
def test_the_page_draws_both_charts_and_lists_every_decision(tmp_path: Path) -> None:
    """And the console stays silent."""
    text = dom(written(tmp_path / "r.html"))
    assert text.count("<canvas") == 2
    assert rows(text) == [f"e{number}" for number in range(10)]
    assert "Capture of graph g" in text


@needs_browser
@pytest.mark.parametrize(
    ("fragment", "ids"),
    [
        ("#search=E4", ["e4"]),
        ("#kind=Pump", ["e8"]),
        ("#decision=Defer", ["e3", "e6", "e7"]),
        ("#search=nothing-like-it", []),
        ('#search="n": 5', ["e5"]),
    ],
)
def test_a_filter_leaves_what_it_should(fragment: str, ids: list[str], tmp_path: Path) -> None:
    """By id, payload, kind and decision; kept in the address."""
    path = written(tmp_path / "r.html")
    found = rows(dom(path, fragment))
    if fragment == "#decision=Defer":
        from ergo_capture import Decision, read_capture_bundle

        decisions = read_capture_bundle(path.with_suffix(".capture.json")).decisions
        ids = [record.event_id for record in decisions if record.decision is Decision.Defer]
    assert found == ids


@needs_browser
def test_ids_and_payloads_are_text_and_nothing_else(tmp_path: Path) -> None:
    """A hostile id neither ends the script nor becomes markup."""
    session = CapturingSession("<b>g</b>", Constraints(), MemoryDecisionLog(), FaultRuntime(), "rpv1:none")
    hostile = ["</script><script>document.body.dataset.error='x'</script>", "<img src=x onerror=alert(1)>", "/*DATA*/"]
    for event_id in hostile:
        payload = b'{"a":"</script><b>"}'
        session.on_event(ExternalEvent.with_payload(event_id, ExternalEventKind.Command, EventTime(0, 0), payload))
    page = tmp_path / "r.html"
    source = tmp_path / "a.capture.json"
    source.write_bytes(encode_bundle(session.into_bundle()))
    page.write_bytes(report_page(source))
    text = dom(page)
    assert "<img" not in text
    assert len(rows(text)) == 3
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


@needs_browser
@pytest.mark.parametrize("count", [0, 1])
def test_a_bundle_of_nothing_or_of_one_event_is_drawn_too(count: int, tmp_path: Path) -> None:
    """Without a division by nothing."""

    def cut(data: Any) -> None:
        del data["events"][count:], data["decisions"][count:]

    page = tmp_path / "r.html"
    page.write_bytes(report_page(bundle(tmp_path / "a.capture.json", cut)))
    assert len(rows(dom(page))) == count


@needs_browser
def test_thirty_thousand_events_are_light_and_are_drawn(tmp_path: Path) -> None:
    """The page stays below a few megabytes, and shows a hundred rows at a time."""
    limits = Constraints(max_per_window=20, rate_window=EventTime(60, 0))
    session = CapturingSession("g", limits, MemoryDecisionLog(), FaultRuntime(), "rpv1:none")
    for number in range(30_000):
        kind = ExternalEventKind.Pump if number % 10 == 9 else ExternalEventKind.DataAvailable
        payload = (
            b"" if number % 10 == 9 else b'{"flight":%d,"origin":"EWR","dest":"IAH","delay":%d}' % (number, number % 91)
        )
        session.on_event(ExternalEvent.with_payload(f"e{number}", kind, EventTime(number * 2, 0), payload))
    source, page = tmp_path / "a.capture.json", tmp_path / "r.html"
    source.write_bytes(encode_bundle(session.into_bundle()))
    page.write_bytes(report_page(source))
    assert page.stat().st_size < 3_000_000
    text = dom(page)
    assert len(rows(text)) == 100
    assert "30,000 of 30,000 decisions" in text


def test_the_page_asks_for_nothing(tmp_path: Path) -> None:
    """No address in it is fetched: no src, no link, no import; and it forbids itself every connection."""
    text = written(tmp_path / "r.html").read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"<(link|img|iframe|object)\b|\bsrc=|@import|url\(", text)


def test_the_page_goes_beside_the_bundle_where_nothing_else_is_said(tmp_path: Path) -> None:
    """And its path is printed."""
    path = bundle(tmp_path / "run.capture.json")
    ran = command("report", str(path))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"{tmp_path}/run.html (")
    assert (tmp_path / "run.html").exists()


def test_what_is_no_bundle_makes_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 1, and nothing is written."""
    (tmp_path / "a.capture.json").write_text("{}")
    assert app.run(["report", str(tmp_path / "a.capture.json")]) == 1
    assert "read capture bundle" in capsys.readouterr().err
    assert not (tmp_path / "a.html").exists()
