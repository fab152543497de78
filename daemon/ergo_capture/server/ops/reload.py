"""Reload the configuration while the daemon runs: validate it first, then apply all of it or nothing.

These take effect at once: limits, access, graphs (except engines, and their expected provenance, of existing graphs),
rotation, retention, linger, the style and compression of bundles, the drain time and the log level. Limits and
allow-lists apply to the clients that come next, and a graph's constraints to the sessions opened next: a session keeps
the constraints it was opened with, as its bundle does. A graph that was removed takes no new sessions; its open
sessions go on. Everything else needs a restart, and each reload names it until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec
import structlog
from anyio import to_thread

from ergo_capture import telemetry
from ergo_capture.config import Config
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.protocol.capture import Code, ProtocolError
from ergo_capture.server.components import Components, Phase
from ergo_capture.server.factories import access_list, graph_of, retention_rules
from ergo_capture.server.failures import internal_error
from ergo_capture.server.net.listener import raise_descriptor_limit
from ergo_capture.server.session.parts import RotationRule

log = structlog.get_logger()

#: A setting's table and key; ``graphs`` and a name for a graph that is added or removed, with a key for one that changes.
Setting = tuple[str, ...]

#: Tables and single settings that take effect at once; graphs do but for their engines.
AT_ONCE: Final = frozenset(
    {
        ("access",),
        ("limits",),
        ("rotation",),
        ("retention",),
        # The daemon uses of it only the targets of ``retention.shipped_to``.
        ("ship",),
        ("session", "linger"),
        ("bundle",),
        ("shutdown", "drain"),
        ("log", "level"),
    }
)
#: Settings of an existing graph that need a restart: an engine is checked against them once, when it starts.
ENGINE_SETTINGS: Final = ("engine", "runtime_provenance")


class Reloaded(msgspec.Struct, frozen=True):
    """The settings that differ from those that were in force."""

    #: Settings that took effect.
    applied: list[str]
    #: Settings that take effect with the next start.
    restart: list[str]


class Reloader:
    """Reloads the configuration on request.

    Args:
        components: the daemon's components.
        reread: reads the configuration file again and returns its content.
    """

    def __init__(self, components: Components, reread: Callable[[], Config]) -> None:
        self._components = components
        self._reread = reread
        self._lock = asyncio.Lock()

    async def reload(self) -> Reloaded:
        """Read the file and apply the settings that can be applied.

        Returns:
            The settings that took effect, and those that need a restart.

        Raises:
            ErgoCaptureError: the file cannot be used and nothing has changed, or the daemon is not serving.
        """
        # Reload one at a time: a configuration that was read earlier must not be applied later.
        async with self._lock:
            try:
                phase = self._components.phase
                if phase is not Phase.SERVING:
                    raise ProtocolError(
                        Code.SHUTTING_DOWN,
                        f"the daemon is {phase}, and reads no configuration meanwhile",
                        "try again when it serves",
                    )
                reloaded = self._apply(await to_thread.run_sync(self._reread))
            except ErgoCaptureError as error:
                log.error(telemetry.CONFIG_REFUSED, error=error.message, hint=error.hint)  # noqa: TRY400 - one sentence
                raise
            except Exception as error:
                # A defect in a reload must not end the daemon.
                internal = internal_error("reload", error)
                log.exception(telemetry.CONFIG_REFUSED, error=internal.message, hint=internal.hint)
                raise internal from error
            log.info(telemetry.CONFIG_RELOADED, applied=reloaded.applied, restart=reloaded.restart)
            return reloaded

    def _apply(self, wanted: Config) -> Reloaded:
        components, running = self._components, self._components.running
        assert running is not None, "a daemon that serves has recovered its journal"
        changed = differences(components.config, wanted)
        applied = [setting for setting in changed if takes_effect(setting)]
        config = merged(components.config, wanted, applied)
        # Do what can fail first.
        access = access_list(config)
        existing = running.registry.graphs
        graphs = {
            name: graph_of(
                name, graph, int(config.limits.context_bytes), existing[name].engine if name in existing else None
            )
            for name, graph in config.graphs.items()
        }
        applied += [
            ("graphs", name, "adapter")
            for name, graph in graphs.items()
            if name in existing
            and graph.adapter_provenance != existing[name].adapter_provenance
            and ("graphs", name, "adapter") not in changed
        ]
        raise_descriptor_limit(config.limits.max_clients)

        components.config = config
        components.clients.apply(config.limits, access)
        running.registry.apply(config.limits, RotationRule(config.rotation), config.session.linger.seconds, graphs)
        running.publisher.apply(config.bundle)
        components.retention.apply(retention_rules(config), config.retention.interval.seconds)
        telemetry.set_level(config.log.level)
        return Reloaded(
            [".".join(setting) for setting in applied],
            [".".join(setting) for setting in changed if not takes_effect(setting)],
        )


def differences(old: Config, new: Config) -> list[Setting]:
    """Return the settings that differ, in the order of the file."""
    before, after = _settings_of(old), _settings_of(new)
    kept = old.graphs.keys() & new.graphs.keys()
    changed = [
        setting
        for setting, value in after.items()
        if value != before.get(setting) and (setting[0] != "graphs" or setting[1] in kept)
    ]
    return changed + [("graphs", name) for name in sorted(old.graphs.keys() ^ new.graphs.keys())]


def _settings_of(config: Config) -> dict[Setting, Any]:
    found: dict[Setting, Any] = {}
    for section in Config.__struct_fields__:
        value = getattr(config, section)
        tables = (
            {(section, name): graph for name, graph in value.items()} if section == "graphs" else {(section,): value}
        )
        for table, settings in tables.items():
            found |= {(*table, key): getattr(settings, key) for key in settings.__struct_fields__}
    return found


def takes_effect(setting: Setting) -> bool:
    """Return whether a change of the setting takes effect at once."""
    if setting[0] == "graphs":
        # Compare the length, not the name: a graph that is added or removed may have any name.
        return len(setting) < 3 or setting[2] not in ENGINE_SETTINGS
    return (setting[0],) in AT_ONCE or setting in AT_ONCE


def merged(old: Config, new: Config, applied: list[Setting]) -> Config:
    """Return the old configuration with the ``applied`` settings taken from the new one."""
    sections: dict[str, Any] = {
        section: msgspec.structs.replace(
            getattr(old, section),
            **{key[1]: getattr(getattr(new, section), key[1]) for key in applied if key[0] == section},
        )
        for section in Config.__struct_fields__
        if section != "graphs"
    }
    sections["graphs"] = {
        name: msgspec.structs.replace(graph, **{key: getattr(old.graphs[name], key) for key in ENGINE_SETTINGS})
        if name in old.graphs
        else graph
        for name, graph in new.graphs.items()
    }
    return msgspec.structs.replace(old, **sections)
