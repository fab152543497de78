"""Modules that happen to lie in the current directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.daemons import COMMAND, DaemonProcess, command_environment, short_directory

#: Modules that the daemon, the worker that composes bundles, and Python itself import.
NAMES = ("anyio", "click", "structlog", "msgspec", "queue", "pickle", "signal", "random")


def test_modules_of_the_current_directory_are_not_run(tmp_path: Path) -> None:
    """A command's own daemon does not run them, nor does the worker process that composes the bundle."""
    (tmp_path / "demo").mkdir()
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'run')!r}, 'a').write('{name}\\n')\nraise SystemExit(9)\n"
        )
    command = COMMAND if "ERGO_CAPTURE_COMMAND" in os.environ else [sys.executable, "-P", "-m", "ergo_capture"]
    ran = subprocess.run(
        [*command, "demo", "--directory", str(tmp_path / "demo")],
        cwd=tmp_path,
        env=command_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert not (tmp_path / "run").exists(), (tmp_path / "run").read_text()
    log = (tmp_path / "demo" / "daemon.log").read_text()
    assert "worker.broken" not in log
    assert "bundle.published" in log


def test_an_engine_may_import_what_lies_beside_it() -> None:
    """The daemon's protection of its own worker is not passed on to engines."""
    with short_directory() as place:
        (place / "beside.py").write_text(
            'READY = \'{"type":"ready","protocol":"ergo-engine.v1","runtime_provenance":"p"}\'\n'
        )
        (place / "engine.py").write_text("import beside\nprint(beside.READY, flush=True)\ninput()\n")
        command = f'["{sys.executable}", "{place / "engine.py"}"]'
        text = f'[graphs.default]\nengine = {{ kind = "process", command = {command} }}\n'
        with DaemonProcess(place, place / "state", config=text) as daemon:
            daemon.start()
            daemon.until_logged("engine.ready")
