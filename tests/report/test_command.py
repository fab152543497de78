"""``ergo-capture report``: where the page is written, and what it never overwrites."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.cli.runs import bundle
from tests.daemons import COMMAND, PATIENCE, command, command_environment

from ergo_capture.cli import app

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("run.capture.json", "run.html"),
        ("run~2.capture.json", "run~2.html"),
        ("v1.2.json", "v1.2.html"),
        ("bundle", "bundle.html"),
        (".json", ".json.html"),
    ],
)
def test_the_page_is_written_beside_the_bundle_by_default(
    tmp_path: Path, capsys: Capture, name: str, page: str
) -> None:
    """Its path and size are printed."""
    assert app.run(["report", str(bundle(tmp_path / name))]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/{page} (")
    assert (tmp_path / page).read_bytes().startswith(b"<!doctype html>")


def test_missing_directories_are_created_and_an_older_page_is_replaced(tmp_path: Path) -> None:
    """Every other output does the same."""
    source, page = bundle(tmp_path / "a.json"), tmp_path / "deep" / "er" / "a.html"
    assert app.run(["report", str(source), "-o", str(page)]) == 0
    page.write_text("old")
    assert app.run(["report", str(source), "-o", str(page)]) == 0
    assert page.read_bytes().startswith(b"<!doctype html>")


def test_the_page_can_be_written_to_a_pipe(tmp_path: Path) -> None:
    """``-o -`` writes the page and nothing else."""
    source = bundle(tmp_path / "a.json")
    ran = command("report", str(source), "-o", "-")
    assert ran.returncode == 0
    assert ran.stdout.startswith("<!doctype html>")
    assert ran.stdout.rstrip().endswith("</html>")
    assert list(tmp_path.iterdir()) == [source]


def test_a_closed_pipe_is_a_failure(tmp_path: Path) -> None:
    """Exit code 141, as for every command; the page is larger than a pipe's buffer."""
    source = bundle(tmp_path / "a.json")
    ran = command_into("head -c 20", "report", str(source), "-o", "-")
    assert ran == (141, "<!doctype html>\n<htm")


def command_into(reader: str, *arguments: str) -> tuple[int, str]:
    """Return the exit code of a command piped into ``reader``, and what the reader printed."""
    script = f'"$@" | {reader}; echo "${{PIPESTATUS[0]}}" >&2'
    ran = subprocess.run(
        ["bash", "-c", script, "bash", *COMMAND, *arguments],
        capture_output=True, text=True, timeout=PATIENCE, check=True, env=command_environment(),
    )  # fmt: skip
    return int(ran.stderr), ran.stdout


def test_a_bundle_from_a_pipe_needs_a_path_for_its_page(tmp_path: Path, capsys: Capture) -> None:
    """Nothing is written beside a device; with ``-o`` the page is that of the file."""
    source = bundle(tmp_path / "a.json")
    assert app.run(["report", "/dev/stdin"]) == 2
    assert "no place beside it" in capsys.readouterr().err
    piped = tmp_path / "piped.html"
    script = 'cat "$0" | "$@"'
    subprocess.run(
        ["bash", "-c", script, str(source), *COMMAND, "report", "/dev/stdin", "-o", str(piped)],
        capture_output=True, timeout=PATIENCE, check=True, env=command_environment(),
    )  # fmt: skip
    assert b"</html>" in piped.read_bytes()


@pytest.mark.parametrize("way", ["same", "link", "dots"])
def test_the_bundle_is_never_overwritten(tmp_path: Path, capsys: Capture, way: str) -> None:
    """The path may name it in any way; the exit code is 2."""
    source = bundle(tmp_path / "a.json")
    before = source.read_bytes()
    (tmp_path / "link.html").symlink_to(source)
    target = {"same": source, "link": tmp_path / "link.html", "dots": tmp_path / ".." / tmp_path.name / "a.json"}[way]
    assert app.run(["report", str(source), "-o", str(target)]) == 2
    assert "it is the file that is read" in capsys.readouterr().err
    assert source.read_bytes() == before


def test_a_file_that_is_not_regular_is_not_replaced(tmp_path: Path, capsys: Capture) -> None:
    """A device at the page's path would be gone."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert app.run(["report", str(bundle(tmp_path / "a.json")), "-o", str(fifo)]) == 2
    assert app.run(["report", str(tmp_path / "a.json"), "-o", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert ("it is not an ordinary file" in said, "it is a directory" in said) == (True, True)
    assert fifo.is_fifo()


def test_a_file_that_is_not_a_bundle_gives_no_page(tmp_path: Path, capsys: Capture) -> None:
    """Exit 1, and nothing is written."""
    (tmp_path / "a.capture.json").write_text("{}")
    assert app.run(["report", str(tmp_path / "a.capture.json")]) == 1
    assert "read capture bundle" in capsys.readouterr().err
    assert not (tmp_path / "a.html").exists()


def test_a_missing_bundle_is_an_error(tmp_path: Path, capsys: Capture) -> None:
    """Exit 1, with a hint."""
    assert app.run(["report", str(tmp_path / "no.json")]) == 1
    error = capsys.readouterr().err
    assert "No such file" in error
    assert "Try: " in error


def test_the_same_bundle_gives_the_same_page(tmp_path: Path) -> None:
    """Byte for byte: it depends on no clock and on no hash seed."""
    source = bundle(tmp_path / "a.json", effects=True)
    pages = [command("report", str(source), "-o", "-").stdout for _ in range(2)]
    assert pages[0] == pages[1]
