"""The shipper's metrics: every one is there from the start, and the manual explains them."""

from __future__ import annotations

import re
from pathlib import Path

from tests.contract.documents import MANUAL, assert_rows
from tests.ship.rig import directory_target, fill, shipper_to

from ergo_capture.bundle.catalogue import Catalogue
from ergo_capture.config.shipping import AnnounceConfig, ShipConfig
from ergo_capture.ship.announcing import Announcer
from ergo_capture.ship.metrics import exposition, write_textfile


async def sample(tmp_path: Path) -> str:
    """Return the metrics of a target with three bundles shipped, one that waits and one that is not sound."""
    shipper = shipper_to(directory_target(tmp_path / "store"), tmp_path)
    broken = fill(tmp_path, 4)[0]
    broken.write_bytes(b"x")
    await shipper.look()
    await shipper.send_due()
    fill(tmp_path, 1, begin=4)
    await shipper.look()
    return exposition(tmp_path, [shipper], announcer_to("nats://127.0.0.1:1", tmp_path)).decode()


def announcer_to(server: str, state: Path) -> Announcer:
    """Return an announcer that has looked at nothing."""
    ship = ShipConfig(announce=AnnounceConfig(servers=(server,)))
    return Announcer(ship, Catalogue(state / "bundles").read, "h")


async def test_the_figures_are_those_of_the_last_look(tmp_path: Path) -> None:
    """Each with its state directory and target."""
    text = await sample(tmp_path)
    labels = f'state_directory="{tmp_path}",target="archive"'
    for name, value in (
        ("up", 1),
        ("backlog_bundles", 1),
        ("sent_total", 3),
        ("unsound", 1),
        ("verify_failures_total", 0),
    ):
        assert f"ergo_capture_ship_{name}{{{labels}}} {value}.0\n" in text
    (oldest,) = re.findall(r"^ergo_capture_ship_oldest_unshipped_seconds{.*} (.*)$", text, re.MULTILINE)
    assert float(oldest) >= 86_400
    for reason in ("away", "refused", "differs", "unsound", "changed", "failed"):
        assert f'reason="{reason}"' in text


async def test_every_metric_of_the_shipper_is_explained(tmp_path: Path) -> None:
    """No other metric is explained."""
    kinds = re.findall(r"^# TYPE ergo_capture_(\w+) \w+$", await sample(tmp_path), re.MULTILINE)
    assert_rows(MANUAL / "metrics.md", "The metrics of the shipper", kinds)


def test_everybody_may_read_the_text_file(tmp_path: Path) -> None:
    """node_exporter runs as another user."""
    path = tmp_path / "ship.prom"
    write_textfile(path, b"x 1\n")
    assert path.read_bytes() == b"x 1\n"
    assert path.stat().st_mode & 0o777 == 0o644


async def test_announcements_have_figures_of_their_own(tmp_path: Path) -> None:
    """They have no target; if nothing is announced, there are none."""
    text = await sample(tmp_path)
    labels = f'state_directory="{tmp_path}"'
    for name, value in (("announce_up", 1), ("unannounced_bundles", 0), ("announced_total", 0)):
        assert f"ergo_capture_ship_{name}{{{labels}}} {value}.0\n" in text
    for reason in ("away", "refused", "failed"):
        assert f'ergo_capture_ship_announce_failures_total{{reason="{reason}",{labels}}} 0.0\n' in text
    assert b"announce" not in exposition(tmp_path, [])
