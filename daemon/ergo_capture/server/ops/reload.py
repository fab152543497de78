"""Reading the configuration again while the daemon runs: validated first, then all of it or none.

At once: limits, access, graphs but for the engines of those that are there (and what these have to be), rotation, retention, linger, the style
and compression of bundles, the drain, the log's level. Limits and allow-lists are for whoever comes next, and a graph's constraints for the
sessions opened next: a session keeps those it was opened with, as its bundle does. A graph that is not in the
file any more takes no new sessions; those that are open go on. All the rest needs a restart, and is named in
each reload until it has had one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
from anyio import to_thread

from ergo_capture import telemetry
from ergo_capture.config import Config
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.protocol.capture import Code, ProtocolError
from ergo_capture.server.factories import graph_of, limits_of, retention_of, rotation_of, session_limits_of
from ergo_capture.server.net.admission import make_room
from ergo_capture.server.session.access import access_of
from ergo_capture.server.session.graph import Graph

if TYPE_CHECKING:
    from ergo_capture.server.service import Service

log = structlog.get_logger()

#: Tables and single settings that take effect at once; graphs do but for their engines.
AT_ONCE: Final = frozenset(
    {
        ("access",),
        ("limits",),
        ("rotation",),
        ("retention",),
        ("session", "linger"),
        ("bundle",),
        ("shutdown", "drain"),
        ("log", "level"),
    }
)
#: What of a graph that is there stays until a restart: what an engine has to be is asked of it once, when it comes.
OF_THE_ENGINE: Final = ("engine", "runtime_provenance")


class Reloaded(msgspec.Struct, frozen=True):
    """What became of the settings that differ from those in force."""

    #: Took effect.
    applied: list[str]
    #: Take effect with the next start.
    restart: list[str]


class Reloader:
    """Reads the configuration again, on request.

    Args:
        service: the daemon.
        reread: the configuration as the file says now.
    """

    def __init__(self, service: Service, reread: Callable[[], Config]) -> None:
        self._service = service
        self._reread = reread
        self._one_at_a_time = asyncio.Lock()

    async def reload(self) -> Reloaded:
        """Read the file and put in force what can be.

        Raises:
            ErgoCaptureError: the file cannot be used, and nothing has changed; or the daemon is not serving.
        """
        # Why in line: reading takes a moment, and the configuration that was read first must not come last.
        async with self._one_at_a_time:
            return await self._reload()

    async def _reload(self) -> Reloaded:
        try:
            if self._service.phase != "serving":
                raise ProtocolError(
                    Code.SHUTTING_DOWN,
                    f"the daemon is {self._service.phase}, and reads no configuration meanwhile",
                    "try again when it serves",
                )
            wanted = await to_thread.run_sync(self._reread)
            reloaded = self._apply(wanted)
        except ErgoCaptureError as error:
            log.error(telemetry.CONFIG_REFUSED, error=error.message, hint=error.hint)  # noqa: TRY400 - one sentence
            raise
        except Exception as error:
            # Why here: whoever asks for a reload, a mistake of ours in it must not end the daemon.
            message = f"reload: {type(error).__name__}: {error}"
            log.exception(telemetry.CONFIG_REFUSED, error=message)
            hint = "this is a defect of ergo-capture; restart the daemon to have the new configuration"
            raise ErgoCaptureError(message, op="reload", hint=hint) from error
        log.info(telemetry.CONFIG_RELOADED, applied=reloaded.applied, restart=reloaded.restart)
        return reloaded

    def _apply(self, wanted: Config) -> Reloaded:
        service = self._service
        running = service.running
        assert running is not None, "a daemon that serves has its parts"
        changed = differences(service.config, wanted)
        applied = [setting for setting in changed if takes_effect(setting)]
        config = merged(service.config, wanted, applied)
        # First what may fail, then what cannot.
        access = access_of(config.access.users, config.access.groups, "access")
        graphs = self._graphs(config, running.registry.graphs)
        limits, session_limits = limits_of(config), session_limits_of(config)
        make_room(config.limits.max_clients)

        service.config = config
        service.clients.limits = limits
        service.clients.admission.access = access
        service.clients.admission.max_clients = config.limits.max_clients
        service.clients.admission.max_user_clients = config.limits.max_user_clients
        service.clients.held.total = service.clients.held.per_user = int(config.limits.held_bytes)
        running.registry.take_limits(session_limits)
        running.registry.take_rules(rotation_of(config), config.session.linger.seconds)
        running.registry.graphs.clear()
        running.registry.graphs.update(graphs)
        running.registry.tend_engines()
        running.publisher.style = config.bundle.style
        running.publisher.compress = config.bundle.compress
        service.retention.take_rules(retention_of(config), config.retention.interval.seconds)
        telemetry.set_level(config.log.level)
        return Reloaded(
            [".".join(setting) for setting in applied],
            [".".join(setting) for setting in changed if not takes_effect(setting)],
        )

    def _graphs(self, config: Config, there: dict[str, Graph]) -> dict[str, Graph]:
        """The graphs as configured; those that are there keep their engines."""
        return {
            name: graph_of(name, wanted, there[name].engine if name in there else None)
            for name, wanted in config.graphs.items()
        }

    def __repr__(self) -> str:
        return f"<Reloader{', at it' if self._one_at_a_time.locked() else ''}>"


#: A setting's table and key; ``graphs`` and a name for a graph that comes or goes, and a key behind them otherwise.
Setting = tuple[str, ...]


def differences(old: Config, new: Config) -> list[Setting]:
    """The settings that differ, in the order of the file."""
    before, after = _settings_of(old), _settings_of(new)
    settled = old.graphs.keys() & new.graphs.keys()
    changed = [
        setting
        for setting, value in after.items()
        if value != before.get(setting) and (setting[0] != "graphs" or setting[1] in settled)
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
    """Whether a setting that has changed takes effect at once."""
    if setting[0] == "graphs":
        # Why the length: a graph that comes or goes may have any name.
        return len(setting) < 3 or setting[2] not in OF_THE_ENGINE
    return (setting[0],) in AT_ONCE or setting in AT_ONCE


def merged(old: Config, new: Config, applied: list[Setting]) -> Config:
    """The old configuration with those settings as in the new one."""
    sections: dict[str, Any] = {
        section: msgspec.structs.replace(
            getattr(old, section),
            **{key[1]: getattr(getattr(new, section), key[1]) for key in applied if key[0] == section},
        )
        for section in Config.__struct_fields__
        if section != "graphs"
    }
    sections["graphs"] = {
        name: msgspec.structs.replace(graph, **{key: getattr(old.graphs[name], key) for key in OF_THE_ENGINE})
        if name in old.graphs
        else graph
        for name, graph in new.graphs.items()
    }
    return msgspec.structs.replace(old, **sections)
