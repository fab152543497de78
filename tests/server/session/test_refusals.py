"""Refusals to open, resume or watch a session give a code, a reason and what to do next."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.adapter.cases import graph_id
from tests.daemons import Daemon, event, running_daemon
from tests.egress.hosted import TWO, configuration, good

from ergo_capture.config import ConfigError
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.errors import JournalError
from ergo_capture.journal.payloads import Loss, Peer
from ergo_capture.protocol.capture import Acknowledged, Code, Lost, Open, ProtocolError
from ergo_capture.server.session.access import Access, access_of, peer_name
from ergo_capture.server.session.continuity import lost_error
from ergo_capture.server.session.session import Session

STAY = '[session]\nlinger = "1h"\n'
#: A user that the host does not know.
STRANGER = Peer(uid=4_242_424, gid=4_242_424, pid=1)
SELF = Peer(uid=os.getuid(), gid=os.getgid(), pid=os.getpid())


class Connection:
    """An owner of sessions that ignores everything."""

    def progress(self) -> None:
        """Do nothing."""

    def session_failed(self, error: ProtocolError) -> None:
        """Do nothing."""


async def refused(daemon: Daemon, request: Open, peer: Peer = SELF) -> tuple[Code, str, str]:
    """Return the code, message and hint of a refused request."""
    with pytest.raises(ProtocolError) as caught:
        await daemon.service.registry.open(request, peer, Connection())
    return caught.value.code, caught.value.message, caught.value.hint or ""


async def opened(daemon: Daemon, peer: Peer = SELF, graph: str = "default") -> Session:
    """Open a session for a user."""
    session, resumed = await daemon.service.registry.open(Open(graph=graph), peer, Connection())
    assert not resumed
    return session


async def test_a_graph_that_is_not_configured_is_refused_with_the_names_of_those_that_are() -> None:
    """The names are sorted."""
    async with running_daemon("[graphs.b]\n[graphs.a]\n") as daemon:
        assert await refused(daemon, Open(graph="c")) == (
            Code.UNKNOWN_GRAPH,
            "graph 'c' is not configured",
            "open one of: a, b; or add [graphs.NAME] to the configuration",
        )


async def test_a_graph_is_refused_to_a_user_who_is_not_on_its_list() -> None:
    """The hint names the settings."""
    async with running_daemon("[graphs.default]\nusers = [1]\n") as daemon:
        expected = (
            Code.FORBIDDEN,
            "user 4242424 may not use graph 'default'",
            "ask the operator to add you to graphs.default.users or .groups",
        )
        assert await refused(daemon, Open(), STRANGER) == expected
        session = await opened(daemon, Peer(uid=1, gid=1, pid=1))
        daemon.service.registry.leave(session, may_come_back=True)
        # Its opener is taken off the list.
        session.graph = replace(session.graph, access=Access(frozenset({2})))
        code, *_ = await refused(daemon, Open(session=session.description.session), Peer(uid=1, gid=1, pid=1))
        assert code is Code.FORBIDDEN


async def test_a_session_of_another_user_is_refused_whether_it_is_open_or_over() -> None:
    """The words are the same, so that they reveal nothing."""
    async with running_daemon(STAY) as daemon:
        session = await opened(daemon)
        name = session.description.session
        expected = (Code.FORBIDDEN, f"session {name!r} was opened by another user", "resume it as that user")
        assert await refused(daemon, Open(session=name), STRANGER) == expected
        session.end("complete")
        await session.over.wait()
        assert await refused(daemon, Open(session=name), STRANGER) == expected
        code, message, hint = await refused(daemon, Open(session=name))
        assert (code, message) == (Code.UNKNOWN_SESSION, f"session {name!r} is not open")
        assert hint == f"it has ended, with 0 events: see '{session.bundles[-1]}'; open a new session"


async def test_a_session_that_is_over_is_known_to_its_user() -> None:
    """The manifest names the user."""
    async with running_daemon() as daemon:
        session = await opened(daemon, STRANGER)
        session.end("complete")
        await session.over.wait()
        assert (await refused(daemon, Open(session=session.description.session), STRANGER))[0] is Code.UNKNOWN_SESSION


async def test_a_session_that_is_in_use_or_ending_is_busy() -> None:
    """The hint is to close the other connection first, or to try again."""
    async with running_daemon() as daemon:
        session = await opened(daemon)
        name, hint = session.description.session, "close the other connection first, or try again"
        expected = (Code.SESSION_BUSY, f"session {name!r} is in use", hint)
        assert await refused(daemon, Open(session=name)) == expected
        session.end("complete")
        assert await refused(daemon, Open(session=name)) == (Code.SESSION_BUSY, f"session {name!r} is ending", hint)
        await session.over.wait()


async def test_a_session_that_nobody_knows_is_refused_with_where_to_look() -> None:
    """It may have ended, and its bundle may have been removed."""
    async with running_daemon() as daemon:
        assert await refused(daemon, Open(session="gone")) == (
            Code.UNKNOWN_SESSION,
            "session 'gone' is not open",
            "it may have ended: look for its bundle; open a new session without a session id",
        )


async def test_a_quarantined_session_is_refused_with_the_reason_and_the_way_out() -> None:
    """The operator can salvage it."""
    async with running_daemon() as daemon:
        daemon.service.registry.quarantine.reasons["s"] = "its events are damaged"
        assert await refused(daemon, Open(session="s")) == (
            Code.STORAGE_FAILED,
            "session 's' is quarantined: its events are damaged",
            "its operator can salvage it with `ergo-capture recover --settle`; open a new session",
        )


async def test_a_daemon_that_stops_opens_and_resumes_nothing() -> None:
    """Its sessions stay for the next start, and those that would have ended by now linger on."""
    async with running_daemon() as daemon:
        registry = daemon.service.registry
        session = await opened(daemon)
        session.owner = None
        registry.linger(session)
        registry.stop()
        expected = (Code.SHUTTING_DOWN, "the daemon is stopping", "connect again in a moment")
        assert await refused(daemon, Open()) == expected
        assert await refused(daemon, Open(session=session.description.session)) == expected
        assert registry._lingering == {}
        registry.leave(session, may_come_back=False)
        assert session.ended is None


@pytest.mark.parametrize(
    ("limit", "what", "peer"),
    [
        ("max_sessions", "2 sessions are open", STRANGER),
        ("max_user_sessions", f"{peer_name(SELF)} has 2 sessions open", SELF),
    ],
)
async def test_sessions_are_limited(limit: str, what: str, peer: Peer) -> None:
    """There is a limit for all users and one for each; the last session within the limit is opened."""
    async with running_daemon(f"[limits]\n{limit} = 2\n") as daemon:
        for _ in range(2):
            await opened(daemon)
        hint = f"close some, or raise limits.{limit}"
        assert await refused(daemon, Open(), peer) == (Code.LIMIT, what, hint)
        if peer is SELF:
            await opened(daemon, STRANGER)


async def test_only_sessions_with_channels_count_towards_their_limit(tmp_path: Path) -> None:
    """Sessions without channels are opened beyond that limit."""
    text = configuration(TWO, tmp_path, good()) + "[graphs.plain]\n[limits]\nmax_egress_sessions = 1\n"
    async with running_daemon(text) as daemon:
        for graph in ("plain", graph_id(TWO), "plain"):
            await opened(daemon, graph=graph)
        assert await refused(daemon, Open(graph=graph_id(TWO))) == (
            Code.LIMIT,
            "1 sessions with egress channels are open",
            "close some, or raise limits.max_egress_sessions",
        )


async def test_a_failed_session_is_refused_with_its_failure() -> None:
    """Nothing would decide the events of such a session."""
    async with running_daemon() as daemon:
        session = await opened(daemon)
        session.fail(ErgoCaptureError("its part cannot be published"))
        await session.over.wait()
        assert await refused(daemon, Open(session=session.description.session)) == (
            Code.STORAGE_FAILED,
            "the session has failed: its part cannot be published",
            "acknowledged events are safe; connect again after the daemon was restarted",
        )


def test_a_loss_is_told_with_what_is_missing_and_both_ways_to_go_on() -> None:
    """The message is for the client's operator, and ``lost`` for the client."""
    error = lost_error("s", Loss(acknowledged=10, held=6, last_acknowledged="e10", last_held="e6"))
    assert (error.code, error.lost) == (Code.ACKNOWLEDGED_LOST, Lost(10, 6, "e6"))
    assert error.message == (
        "4 acknowledged events of session 's' are lost, from behind 'e6' on: 10 were acknowledged, up to 'e10', and the "
        "daemon holds 6"
    )
    assert error.hint == (
        "the state directory is older than what was acknowledged: restore a newer one, or send the missing events "
        "again; resume with resume_after_loss (`send --resume-after-loss`) to go on without them"
    )


async def test_a_session_that_is_gone_with_acknowledged_events_is_named() -> None:
    """The client may have several."""
    async with running_daemon() as daemon:
        code, message, _ = await refused(daemon, Open(session="gone", acknowledged=Acknowledged(5, "e5")))
        assert code is Code.ACKNOWLEDGED_LOST
        assert message.startswith("all 5 acknowledged events of session 'gone' are lost, up to 'e5'")


async def test_a_session_that_lost_the_others_events_is_not_resumed_by_another_user() -> None:
    """A claim about an open session is accepted only from its user."""
    async with running_daemon() as daemon:
        session = await opened(daemon)
        session.owner = None
        request = Open(session=session.description.session, acknowledged=Acknowledged(5, "e5"))
        assert (await refused(daemon, request, STRANGER))[0] is Code.FORBIDDEN
        assert session.lost is None


async def test_ids_that_find_no_memory_are_refused_with_the_limits_to_raise() -> None:
    """The message counts the ids of this session."""
    async with running_daemon('[limits]\nids_bytes = "1KiB"\n') as daemon, daemon.session() as wire:
        # An id takes 120 bytes and its characters: after nine of them there is no room.
        await wire.say(*(event(f"e{number}") for number in range(9)))
        await wire.until_ack(9, 9)
        await wire.say(event("e9"))
        error = await wire.until("error")
        assert (error["code"], error["message"], error["hint"]) == (
            "limit",
            "there is no memory for more event ids than the 9 of this session and those of others",
            "close the session and open another, or raise limits.ids_bytes and limits.user_ids_bytes",
        )


async def test_events_of_a_session_whose_journal_has_failed_are_refused() -> None:
    """They are refused before anything is queued."""
    async with running_daemon() as daemon:
        session = await opened(daemon)
        running = daemon.service.components.running
        assert running is not None
        running.writer.failure = JournalError("the disk is gone", op="write", path=None)
        with pytest.raises(ProtocolError, match=r"^the journal has failed: the disk is gone$") as caught:
            session.admit(None, 0)  # type: ignore[arg-type]
        assert caught.value.code is Code.STORAGE_FAILED
        running.writer.failure = None


async def test_a_watcher_of_nothing_is_refused_with_what_there_is() -> None:
    """The status has the sessions; the graphs are named in the error."""
    async with running_daemon("[graphs.b]\n[graphs.a]\n") as daemon:
        answer = await daemon.ask("tap", of="nothing")
        assert (answer["code"], answer["message"], answer["hint"]) == (
            "unknown_session",
            "'nothing' is neither an open session nor a graph",
            "name one that `ergo-capture status` lists; graphs are a, b",
        )


@pytest.mark.parametrize(
    ("users", "groups", "setting", "what", "database"),
    [(["no one"], [], "socket.users", "user", "passwd"), ([], ["no one"], "socket.groups", "group", "group")],
)
def test_a_list_that_names_nobody_is_refused(users: Any, groups: Any, setting: str, what: str, database: str) -> None:
    """The error has the setting, and the command that prints the names."""
    with pytest.raises(ConfigError) as caught:
        access_of(users, groups, "socket")
    assert caught.value.message == f"configure access: `{setting}`: there is no {what} 'no one' on this host"
    assert caught.value.op == "configure access"
    assert caught.value.hint == f"write the name of a {what} that `getent {database}` prints, or a number"


def test_names_and_numbers_of_a_list_become_numbers() -> None:
    """The numbers are from the host's databases."""
    assert access_of(["root", 7], ["root", 8], "socket") == Access(frozenset({0, 7}), frozenset({0, 8}))
