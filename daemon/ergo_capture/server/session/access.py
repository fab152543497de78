"""Allow-lists of the users and groups that may connect, and that may open sessions of a graph.

An empty list admits everyone whom the socket's mode admits. Otherwise a peer is admitted as one of the users, or as a
member of one of the groups, by its own group or by the group database. Root is always admitted: it could become any of
the users. Names are resolved when the configuration is read, so that ``config check`` finds unknown ones. Membership is
looked up at each connection, so that a change takes effect at once.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ergo_capture.config import ConfigError
from ergo_capture.journal.payloads import Peer

_ROOT = 0


@dataclass(frozen=True, slots=True)
class Access:
    """One allow-list."""

    users: frozenset[int] = frozenset()
    groups: frozenset[int] = frozenset()

    @property
    def is_open(self) -> bool:
        """Whether the list is empty, so that it admits everyone."""
        return not self.users and not self.groups

    def admits(self, peer: Peer) -> bool:
        """Return whether the list admits the peer; the look-up in the user and group databases may block."""
        if self.is_open:
            return True
        if peer.uid == _ROOT or peer.uid in self.users or peer.gid in self.groups:
            return True
        return bool(self.groups) and not self.groups.isdisjoint(groups_of(peer))


def peer_name(peer: Peer) -> str:
    """Return the peer as messages name it: ``user 'NAME'``, or ``user UID`` if the user has no name."""
    try:
        return f"user {pwd.getpwuid(peer.uid).pw_name!r}"
    except KeyError:
        return f"user {peer.uid}"


def groups_of(peer: Peer) -> set[int]:
    """Return the groups of the peer's user in the group database; empty for an unknown user."""
    try:
        user = pwd.getpwuid(peer.uid)
    except KeyError:
        return set()
    return set(os.getgrouplist(user.pw_name, user.pw_gid))


def access_of(users: Iterable[str | int], groups: Iterable[str | int], section: str) -> Access:
    """Return the allow-list of a section of the configuration.

    Args:
        users: user names and numbers.
        groups: group names and numbers.
        section: the section's name, for messages.

    Raises:
        ConfigError: a user or group does not exist.
    """
    return Access(
        frozenset(_number(user, f"{section}.users", "user", lambda name: pwd.getpwnam(name).pw_uid) for user in users),
        frozenset(
            _number(group, f"{section}.groups", "group", lambda name: grp.getgrnam(name).gr_gid) for group in groups
        ),
    )


def _number(name: str | int, setting: str, what: str, look_up: Callable[[str], int]) -> int:
    if isinstance(name, int):
        return name
    try:
        return look_up(name)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"configure access: `{setting}`: there is no {what} {name!r} on this host",
            op="configure access",
            hint=f"write the name of a {what} that `getent {_DATABASES[what]}` prints, or a number",
        ) from error


_DATABASES = {"user": "passwd", "group": "group"}
