"""The chain of seals: one for each finished bundle, in the order of publication.

    {"format": "ergo-capture-seal.v1", "number": 7, "previous": ..., "manifest_sha256": ..., "key": ..., "endorsement": ...,
     "signature": ...}

``number`` is the manifest's ``sequence``, ``previous`` the link of the seal before: the SHA-256 of its text without the
signature. A *tombstone* is the seal of a bundle that retention deleted, with time and reason, signed too. Without the
key, a manifest cannot be changed, inserted, or removed before the last known seal without being noticed. That the end
of a chain was cut is noticed only when a later seal is known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from ergo_capture.seal.keys import Endorsement, SealKey, is_endorsed, is_signed

SEAL_FORMAT: Final = "ergo-capture-seal.v1"
TOMBSTONE_FORMAT: Final = "ergo-capture-tombstone.v1"


class Seal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A link of the chain."""

    format: str = SEAL_FORMAT
    number: int
    #: The link of the seal before; None in the first one.
    previous: str | None
    manifest_sha256: str
    #: The public key that signed it, and that key's endorsement by an earlier one.
    key: str
    endorsement: Endorsement | None = None
    signature: str = ""

    @property
    def content(self) -> bytes:
        """The text that is signed."""
        return msgspec.json.encode(msgspec.structs.replace(self, signature=""))

    @property
    def link(self) -> str:
        """The SHA-256 of the signed text, which the next seal holds as ``previous``."""
        return hashlib.sha256(self.content).hexdigest()


class Tombstone(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The signed record that a sealed bundle was deleted by retention."""

    format: str = TOMBSTONE_FORMAT
    seal: Seal
    #: RFC 3339 in UTC.
    pruned_at: str
    reason: str
    key: str
    endorsement: Endorsement | None = None
    signature: str = ""

    @property
    def content(self) -> bytes:
        """The text that is signed."""
        return msgspec.json.encode(msgspec.structs.replace(self, signature=""))


class Sealed(NamedTuple):
    """A finished bundle with its seal."""

    #: Its name in findings: a path or a key.
    name: str
    #: The manifest's ``sequence``; None in manifests of 0.1.0, which belong to no chain.
    number: int | None
    #: SHA-256 of the manifest's file.
    manifest_sha256: str
    #: Its seal; None if it has none, or if it cannot be read.
    seal: Seal | None


class Finding(NamedTuple):
    """A defect of a chain."""

    #: The bundle; empty if the defect is one of the whole chain.
    name: str
    #: ``changed``, ``unsealed``, ``missing``, ``twice`` or ``untrusted``.
    kind: str
    #: The description, as a sentence.
    message: str


class ChainReport(NamedTuple):
    """The result of checking a chain."""

    findings: tuple[Finding, ...]
    #: The number of sealed bundles, and of those with a tombstone.
    sealed: int
    pruned: int
    #: The numbers of the first and the last seal; None if there are no seals.
    first: int | None
    last: int | None
    #: Whether the first seal is the beginning of the chain.
    is_whole: bool

    @property
    def is_right(self) -> bool:
        """Whether there are seals and no findings; without seals it is false, because all may have been removed."""
        return self.first is not None and not self.findings


def make_seal(key: SealKey, number: int, previous: str | None, manifest_sha256: str) -> Seal:
    """Return a signed seal."""
    seal = Seal(
        number=number,
        previous=previous,
        manifest_sha256=manifest_sha256,
        key=key.public,
        endorsement=key.endorsement,
    )
    return msgspec.structs.replace(seal, signature=key.sign(seal.content))


def make_tombstone(key: SealKey, seal: Seal, pruned_at: str, reason: str) -> Tombstone:
    """Return a signed tombstone."""
    stone = Tombstone(seal=seal, pruned_at=pruned_at, reason=reason, key=key.public, endorsement=key.endorsement)
    return msgspec.structs.replace(stone, signature=key.sign(stone.content))


def encode_seal(seal: Seal) -> bytes:
    """Return the content of a seal's file."""
    return msgspec.json.format(msgspec.json.encode(seal), indent=2) + b"\n"


def decode_seal(text: bytes) -> Seal | None:
    """Return the seal in a file's content; None if it is not a seal of this version."""
    try:
        seal = msgspec.json.decode(text, type=Seal)
    except (ValueError, RecursionError):
        return None
    return seal if seal.format == SEAL_FORMAT else None


def decode_tombstones(lines: Iterable[bytes]) -> Iterator[Tombstone]:
    """Yield the tombstones of a file's lines; a line that a crash cut is left out."""
    for line in lines:
        try:
            stone = msgspec.json.decode(line, type=Tombstone)
        except (ValueError, RecursionError):
            continue
        if stone.format == TOMBSTONE_FORMAT:
            yield stone


class TrustedKeys:
    """The trusted public keys: the given one, and those endorsed by a trusted one.

    Args:
        public: the key that the user trusts.
        signed: seals and tombstones, with their keys and endorsements.
    """

    def __init__(self, public: str, signed: Iterable[Seal | Tombstone]) -> None:
        self.keys = {public}
        by: dict[str, set[str]] = {}
        for each in signed:
            if each.endorsement is not None and is_endorsed(each.key, each.endorsement):
                by.setdefault(each.endorsement.by, set()).add(each.key)
        waiting = [public]
        while waiting:
            for key in by.get(waiting.pop(), ()):
                if key not in self.keys:
                    self.keys.add(key)
                    waiting.append(key)

    def distrust(self, signed: Seal | Tombstone) -> str | None:
        """Return the reason why a seal or a tombstone is not trusted; None if it is."""
        if signed.key not in self.keys:
            return f"it was signed with the key {signed.key}, which is neither the given one nor endorsed by it"
        if not is_signed(signed.key, signed.signature, signed.content):
            return "its signature does not match its text: it was changed"
        return None


def check_chain(bundles: Iterable[Sealed], tombstones: Iterable[Tombstone], public: str) -> ChainReport:
    """Check all bundles of one host against their seals, and the seals against each other.

    Args:
        bundles: the finished bundles.
        tombstones: the tombstones of deleted bundles.
        public: the public key that is trusted.
    """
    bundles, tombstones = list(bundles), list(tombstones)
    seals = [each.seal for each in bundles if each.seal is not None]
    trusted = TrustedKeys(public, [*seals, *tombstones, *(stone.seal for stone in tombstones)])
    findings: list[Finding] = []
    links: dict[int, list[tuple[Seal, str]]] = {}
    pruned = 0
    for stone in tombstones:
        why = trusted.distrust(stone) or trusted.distrust(stone.seal)
        if why is not None:
            findings.append(
                Finding("", "untrusted", f"a tombstone of number {stone.seal.number} is not trusted: {why}")
            )
            continue
        pruned += 1
        links.setdefault(stone.seal.number, []).append((stone.seal, ""))
    unsealed = []
    for each in bundles:
        if each.seal is None:
            unsealed.append(each)
            continue
        why = trusted.distrust(each.seal)
        if why is not None:
            findings.append(Finding(each.name, "untrusted", f"its seal is not trusted: {why}"))
        elif each.seal.manifest_sha256 != each.manifest_sha256:
            findings.append(Finding(each.name, "changed", "its manifest is not the one that was sealed"))
        if why is None:
            links.setdefault(each.seal.number, []).append((each.seal, each.name))
    numbers = sorted(links)
    # Bundles that are older than the key have smaller numbers; those of 0.1.0 have none.
    findings += [
        Finding(each.name, "unsealed", f"it has number {each.number} and no seal")
        for each in unsealed
        if numbers and each.number is not None and each.number >= numbers[0]
    ]
    findings += _gaps(links, numbers)
    return ChainReport(
        tuple(findings),
        len(bundles) - len(unsealed),
        pruned,
        numbers[0] if numbers else None,
        numbers[-1] if numbers else None,
        bool(numbers) and any(seal.previous is None for seal, _ in links[numbers[0]]),
    )


def _gaps(links: dict[int, list[tuple[Seal, str]]], numbers: list[int]) -> Iterator[Finding]:
    before: set[str] | None = None
    for place, number in enumerate(numbers):
        found = links[number]
        # The same seal may occur twice: retention was killed between tombstone and deletion.
        different = {seal.link for seal, _ in found}
        if len(different) > 1:
            names = ", ".join(sorted(name for _, name in found if name))
            yield Finding(
                names,
                "twice",
                f"number {number} was sealed twice: an older state directory was restored, or a seal was made beside it",
            )
        for seal, name in found:
            if before is not None and seal.previous not in before:
                last = numbers[place - 1]
                between = "" if number == last + 1 else f" between number {last} and number {number}"
                yield Finding(
                    name, "missing", f"the seal before number {number} is not there: one was left out{between}"
                )
                break
        before = different
