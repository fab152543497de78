"""Copy the program and its tests to where a private systemd can see them, and run tests inside it.

The box is a script that boots a real systemd in namespaces of its own over a throw-away copy of the root file
system. It lies beside the checkout where there is one; without it, or without root, these tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.seaweed import find_weed
from tests.shared import REPOSITORY

BOX = REPOSITORY.parent / "shared" / "tools" / "systemd-box"
#: The interpreter of the host, which a service under ProtectHome can run.
PYTHON = Path("/usr/bin/python3")
#: Large, and not needed by the tests inside.
_LEFT_OUT = (
    "mypy*", "ruff*", "numpy*", "pip*", "hatch*", "setuptools*", "__pycache__", "*.pth", "pandas*",
    "duckdb*", "_duckdb*", "pyarrow*", "dask*", "distributed*",
)  # fmt: skip
#: The program is taken from the checkout, even if the environment holds a built copy of it.
_OURS = ("ergo_capture", "ergo_capture-*")


def why_not() -> str:
    """Return why no box can be made here; empty if one can."""
    if not BOX.exists():
        return "there is no systemd-box beside this checkout"
    if os.geteuid() != 0 or shutil.which("systemctl") is None or not PYTHON.exists():
        return "a box needs root, systemd and a Python of the host"
    version = subprocess.run(
        [PYTHON, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, check=False
    ).stdout.split()
    if version != [str(number) for number in sys.version_info[:2]]:
        return "the Python of the host is of another version than this one"
    return ""


@contextmanager
def staged() -> Iterator[Path]:
    """Copy the packages and the checkout; below /var/tmp, because the box has a /tmp of its own."""
    with tempfile.TemporaryDirectory(prefix="ergo-box-", dir="/var/tmp") as name:
        stage = Path(name)
        left_out = shutil.ignore_patterns(*_LEFT_OUT)
        packages = shutil.ignore_patterns(*_LEFT_OUT, *_OURS)
        shutil.copytree(sysconfig.get_paths()["purelib"], stage / "lib", ignore=packages, dirs_exist_ok=True)
        shutil.copytree(REPOSITORY / "daemon" / "ergo_capture", stage / "lib" / "ergo_capture", ignore=left_out)
        shutil.copytree(REPOSITORY / "systemd", stage / "lib" / "ergo_capture" / "data" / "systemd")
        shutil.copytree(REPOSITORY / "tests", stage / "tests", ignore=left_out)
        shutil.copy(REPOSITORY / "pyproject.toml", stage)
        (stage / "bin").mkdir()
        if server := find_weed():
            shutil.copy(server, stage / "bin" / "weed")
        yield stage


def run_inside(stage: Path, module: str) -> subprocess.CompletedProcess[str]:
    """Run a module of tests in a box, with the program installed below /opt."""
    script = f"""
        set -eu
        {PYTHON} -m venv --without-pip /opt/ergo-capture
        cp -r {stage}/lib/. /opt/ergo-capture/lib/python*/site-packages/
        printf '%s\\n' '#!/opt/ergo-capture/bin/python3' 'from ergo_capture.__main__ import main' 'main()' > /opt/ergo-capture/bin/ergo-capture
        chmod 755 /opt/ergo-capture/bin/ergo-capture
        cp -r {stage}/bin/. /opt/ergo-capture/bin/
        # The service may not write there: without it, each start would compile everything.
        /opt/ergo-capture/bin/python3 -m compileall -q -j 0 /opt/ergo-capture/lib >/dev/null || true
        cd {stage}
        exec /opt/ergo-capture/bin/python3 -m pytest -q -p no:cacheprovider -m inside --override-ini=pythonpath=. {module}
    """
    environment = {**os.environ, "TMPDIR": "/tmp"}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        [str(BOX), "--", "sh", "-c", script], capture_output=True, text=True, env=environment, timeout=240, check=False
    )
