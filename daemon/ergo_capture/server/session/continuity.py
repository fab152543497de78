"""Compare what a client was told is durable with what the daemon holds.

The state directory may be older than what was acknowledged: a backup was restored, or a disk lost data that it had
reported as written. Only the client can know, so it repeats what it was told when it resumes its session.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from ergo_capture.bundle.manifest import Manifest, ManifestError, read_manifest
from ergo_capture.bundle.names import MANIFEST_SUFFIX, bundle_name, manifest_path, names_beside, safe_name
from ergo_capture.journal.payloads import Loss, Peer
from ergo_capture.protocol.capture import Acknowledged, Code, Lost, ProtocolError, describe_loss
from ergo_capture.server.session.session import Session


class Finished(NamedTuple):
    """The last bundle of a session that is over."""

    bundle: Path
    manifest: Manifest

    @property
    def opened_by(self) -> Peer | None:
        """The user who opened the session; None where the manifest does not say."""
        try:
            return msgspec.convert(self.manifest.peer, Peer | None)
        except msgspec.ValidationError:
            return None

    @property
    def events(self) -> int:
        """Events of the session, up to the end of this bundle."""
        return self.manifest.first_event + self.manifest.events


def loss_in(session: Session, told: Acknowledged | None) -> Loss | None:
    """Return the acknowledged events that an open session lacks; None if it lacks none."""
    if told is None:
        return None
    held, last = session.accepted, session.last_event_id
    if told.events <= held:
        name = told.last_event_id
        if name is None or not told.events or name == last:
            return None
        if told.events < held and not session.admission.certainly_lacks(name, told.events - 1):
            return None
    return Loss(acknowledged=told.events, held=held, last_acknowledged=told.last_event_id, last_held=last)


def loss_of(told: Acknowledged, *, session: str) -> Loss:
    """Return the loss of all acknowledged events of a session that is gone."""
    return Loss(acknowledged=told.events, held=0, last_acknowledged=told.last_event_id, session=session)


def loss_behind(loss: Loss, finished: Finished) -> Loss | None:
    """Return the part of a journal's loss that the session's finished bundles do not hold either; None for none."""
    held, last = finished.events, finished.manifest.last_event_id
    same = None in (last, loss.last_acknowledged) or last == loss.last_acknowledged
    if loss.acknowledged < held or (loss.acknowledged == held and same):
        return None
    return msgspec.structs.replace(loss, held=held, last_held=last)


def lost_error(session_id: str, loss: Loss) -> ProtocolError:
    """Return the refusal to resume a session that lacks acknowledged events."""
    lost = protocol_loss(loss)
    return ProtocolError(
        Code.ACKNOWLEDGED_LOST,
        describe_loss(session_id, lost, loss.last_acknowledged),
        "the state directory is older than what was acknowledged: restore a newer one, or send the missing events "
        "again; resume with resume_after_loss (`send --resume-after-loss`) to go on without them",
        lost,
    )


def protocol_loss(loss: Loss) -> Lost:
    """Return a loss as the protocol's ``lost``."""
    return Lost(loss.acknowledged, loss.held, loss.last_held)


def find_finished(bundles: Path, session_id: str) -> Finished | None:
    """Return the last final bundle of a session, None where there is none.

    It is looked for by its name, and in a list of all bundles only if earlier parts or their bundles are missing.

    Args:
        bundles: the directory of bundles.
        session_id: the session, as a client says.
    """
    try:
        folders = [Path(folder.path) for folder in os.scandir(bundles)]
    except OSError:
        return None
    found = [each for folder in folders if (each := _follow_parts(folder, session_id)) is not None]
    found = found or [each for folder in folders for each in _list_parts(folder, session_id)]
    return max(found, key=lambda each: each.events, default=None)


def _follow_parts(folder: Path, session_id: str) -> Finished | None:
    """Return the bundle in which a session ends; None if not all of its parts stand under their own names."""
    last: Finished | None = None
    for part in itertools.count(1):
        path = folder / bundle_name(session_id, part)
        found = _finished_at(manifest_path(path), session_id)
        if found is None:
            break
        if manifest_path(next(names_beside(path, part))).exists():
            return None
        last = found
    return None if last is None or last.manifest.ended == "rotated" else last


def _list_parts(folder: Path, session_id: str) -> Iterator[Finished]:
    name = safe_name(session_id)
    with suppress(OSError):
        for file in os.scandir(folder):
            if file.name.startswith((name + ".", name + "~")) and file.name.endswith(MANIFEST_SUFFIX):
                found = _finished_at(Path(file.path), session_id)
                if found is not None:
                    yield found


def _finished_at(path: Path, session_id: str) -> Finished | None:
    """Return the final bundle that a manifest describes; None if it is none of the session, or is not there."""
    try:
        manifest = read_manifest(path)
    except (OSError, ManifestError):
        return None
    if manifest.session != session_id or "/" in manifest.bundle or not manifest.is_final:
        return None
    found = Finished(path.with_name(manifest.bundle), manifest)
    return found if found.bundle.is_file() else None
