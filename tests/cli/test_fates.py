"""``info``, ``cat`` and ``report`` show accepted events that are in no bundle."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import zlib
from pathlib import Path

import pytest
from rich.console import Console
from tests.client.test_fates import counting, line
from tests.daemons import command

from ergo_capture.cli.support.output import figures_table
from ergo_capture.client import CaptureClient


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of two events; one event was refused between them, and two are left over after them."""

    async def capture() -> Path:
        async with counting('[limits]\ncontext_bytes = "1KiB"\n') as daemon, CaptureClient(daemon.socket) as client:
            await client.open("default")
            for text in (line("a", 101), line("b"), line("long.c", total=1), line("d"), line("e")):
                await client.send_line(text, json.loads(text)["event"]["event_id"])
            made = Path((await client.close()).bundle)
            place = tmp_path_factory.mktemp("bundle")
            for file in made.parent.iterdir():
                (place / file.name).write_bytes(file.read_bytes())
            return place / made.name

    return asyncio.run(capture())


def test_info_shows_what_is_not_in_the_bundle(bundle: Path) -> None:
    """It shows counts, ids and reasons."""
    shown = re.sub(r" +", " ", command("info", str(bundle)).stdout)
    assert "refused 1 event, the first 'b': semantic event binding failed" in shown
    assert "interrupted context_full: the context store would take" in shown
    assert "left over 2 events, from 'd' on, in the .rest.jsonl beside the bundle" in shown


def test_info_cuts_no_provenance_on_a_narrow_terminal() -> None:
    """It is folded: whoever compares hashes needs all of it."""
    provenance = f"adapter:prices@1.0.0;sha256:{'0123456789abcdef' * 4}"
    table = figures_table()
    table.add_row("provenance", provenance)
    console = Console(width=60, color_system=None)
    with console.capture() as shown:
        console.print(table)
    assert provenance in "".join(shown.get().replace("provenance", "", 1).split())


def test_cat_notes_what_is_not_in_the_bundle_and_says_what_events_mean(bundle: Path) -> None:
    """The notes go to standard error."""
    ran = command("cat", str(bundle), "--json")
    found = [json.loads(text) for text in ran.stdout.splitlines()]
    assert [(each["event_id"], each["semantic_kind"]) for each in found] == [("a", "add"), ("long.c", "add")]
    assert "note: refused: 1 event" in ran.stderr
    assert "note: left over: 2 events, from 'd' on" in ran.stderr
    (only,) = command("cat", str(bundle), "--json", "--from-id", "long.c").stdout.splitlines()
    assert json.loads(only)["semantic_kind"] == "add"


def test_the_report_shows_what_is_not_in_the_bundle(bundle: Path, tmp_path: Path) -> None:
    """The report shows it together with the facts of the run."""
    page = tmp_path / "page.html"
    assert command("report", str(bundle), "-o", str(page)).returncode == 0
    packed = max(re.findall(r">([A-Za-z0-9+/=]{100,})<", page.read_text()), key=len)
    about = dict(json.loads(zlib.decompress(base64.b64decode(packed)))["about"])
    assert about["left over"].startswith("2 events, from 'd' on")
    assert about["interrupted"].startswith("context_full: ")
    assert about["refused"].startswith("1 event, the first 'b': ")
