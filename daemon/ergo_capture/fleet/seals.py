"""Check the chain of seals of each host, from the catalogue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ergo_capture.seal.chain import ChainReport, Sealed, TrustedKeys, check_chain, decode_seal


class HostChains(NamedTuple):
    """The result of checking the chains of all hosts."""

    #: The public keys that are trusted.
    trusted: tuple[str, ...]
    #: The chain of each host.
    reports: dict[str, ChainReport]


def check_hosts(rows: Iterable[Mapping[str, Any]], public: str) -> HostChains:
    """Check the chain of each host.

    Args:
        rows: all rows of the catalogue, of all dates: only the numbers give the order of a chain.
        public: the public key that is trusted.
    """
    hosts: dict[str, list[Sealed]] = {}
    for row in rows:
        # Snapshots are never shipped; a bundle without a number was published by 0.1.0.
        seal = None if row["seal"] is None else decode_seal(row["seal"].encode())
        bundle = Sealed(row["manifest"], row["sequence"], row["manifest_sha256"] or "", seal)
        hosts.setdefault(row["host"] or "", []).append(bundle)
    seals = [bundle.seal for bundles in hosts.values() for bundle in bundles if bundle.seal is not None]
    trusted = TrustedKeys(public, seals)
    reports = {host: check_chain(bundles, (), public) for host, bundles in sorted(hosts.items())}
    return HostChains(tuple(sorted(trusted.keys)), reports)
