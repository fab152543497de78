"""``ergo-capture systemd``.

Owns: putting the units, the user's definition and the first configuration where systemd looks for them.
Not here: the units (``systemd/`` of the repository, packaged beside the code), talking to systemd
(``server/ops/systemd.py``).
"""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import suppress
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Final

import typer

from ergo_capture.config import SYSTEM_FILE, Config, to_toml
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.storage.atomic import write_bytes_atomic

app = typer.Typer(add_completion=False, help="Put ergo-capture under systemd.", no_args_is_help=True)

_SHIPPED_COMMAND: Final = "/usr/bin/ergo-capture"
#: Why here: /etc is for what an administrator writes, such as drop-ins to these; /usr/lib is the distribution's.
_UNITS: Final = "usr/local/lib/systemd/system"
_SYSUSERS: Final = "usr/local/lib/sysusers.d/ergo-capture.conf"
#: The first version that knows Type=notify-reload; older ones take it for "simple".
_NOTIFY_RELOAD: Final = 253
#: What ``ProtectHome=yes`` hides from a service.
_HIDDEN: Final = ("/root", "/home", "/run/user")


@app.callback()
def root() -> None:
    """Put ergo-capture under systemd."""


@app.command()
def install(
    prefix: Annotated[Path, typer.Option(metavar="DIR", help="Root of the system to install into.")] = Path("/"),
    command: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The ergo-capture command that the service runs; by default this one."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")] = False,
) -> int:
    """Write units, the service's user and a first configuration.

    Prints how to go on.

    A configuration that is there is left as it is; units are replaced, drop-ins in /etc/systemd/system are not.
    """
    runs = _command(command)
    files = {prefix / _UNITS / name: text for name, text in _units(runs)}
    files[prefix / _SYSUSERS] = _shipped("ergo-capture.sysusers.conf").read_text("utf-8")
    kept = prefix / SYSTEM_FILE.relative_to("/")
    if not kept.exists():
        files[kept] = to_toml(Config(), comments=True)
    for path, text in files.items():
        if not dry_run:
            # Why not as private as the daemon's own directories: everybody may read these, the daemon's user among them.
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            write_bytes_atomic(path, text.encode())
            path.chmod(0o644)
        typer.echo(f"{'would write' if dry_run else 'wrote'} {path}")
    if kept not in files:
        typer.echo(f"kept {kept}")
    if dry_run:
        return int(ExitCode.OK)
    typer.echo("now run")
    typer.echo("  systemd-sysusers && systemctl daemon-reload")
    typer.echo("  systemctl enable --now ergo-capture.service")
    return int(ExitCode.OK)


def _command(given: Path | None) -> Path:
    path = given or Path(sys.executable).parent / "ergo-capture"
    # Why not resolved: a virtual environment is known by the link that leads out of it.
    runs = Path.cwd() / path
    if not runs.is_file():
        raise ErgoCaptureError(
            f"install units: there is no command '{runs}'",
            op="install units",
            path=runs,
            hint="name the installed ergo-capture with --command",
        )
    for place in (runs, runs.resolve(), Path(sys.base_prefix) if given is None else runs):
        if any(place.is_relative_to(hidden) for hidden in _HIDDEN):
            raise ErgoCaptureError(
                f"install units: the service could not run '{place}', because home directories are hidden from it",
                op="install units",
                path=place,
                hint="make a virtual environment with /usr/bin/python3 below /opt, and install from there",
            )
    return runs


def _units(runs: Path) -> list[tuple[str, str]]:
    """The units by their names below the directory of units, fit for the command."""
    names = ["ergo-capture.socket", "ergo-capture-control.socket"]
    if _version() >= _NOTIFY_RELOAD:
        names.append("ergo-capture.service.d/10-notify-reload.conf")
    found = [(name, _shipped(name).read_text("utf-8")) for name in names]
    service = _shipped("ergo-capture.service").read_text("utf-8").replace(_SHIPPED_COMMAND, str(runs))
    # The interpreter of a virtual environment has to be executable for the service, wherever it is.
    places = sorted({str(Path(sys.prefix)), str(Path(sys.base_prefix))} - {"/usr"})
    service = re.sub(r"(?m)^ExecPaths=.*$", lambda line: " ".join([line[0], *places]), service)
    return [*found, ("ergo-capture.service", service)]


def _version() -> int:
    """Systemd's version; 0 where it cannot be told, which is taken for an old one."""
    with suppress(OSError):
        said = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S607
        if match := re.match(r"systemd (\d+)", said):
            return int(match[1])
    return 0


def _shipped(name: str) -> Traversable:
    packaged = resources.files("ergo_capture") / "data" / "systemd"
    if not packaged.is_dir():
        # Run from a checkout: the units are where they are written.
        packaged = Path(__file__).resolve().parents[3] / "systemd"
    return packaged.joinpath(*name.split("/"))
