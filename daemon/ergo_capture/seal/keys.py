"""Ed25519 keys of seals.

A key's file is JSON: ``{"format", "private", "public", "endorsement"}``, in hex. A key that replaces another one is
endorsed by it: ``{"by", "signature"}``, a signature over the new public key. Every seal holds the endorsement of its
key, so a verifier that trusts the first public key can trust all later ones.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, Final

import msgspec

from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.extras import import_extra

KEY_FORMAT: Final = "ergo-capture-seal-key.v1"
_ENDORSED: Final = b"ergo-capture-seal-key.v1 endorses "
_MAX_BYTES: Final = 64 << 10


class Endorsement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The signature of an earlier key over a later one."""

    #: The earlier public key.
    by: str
    signature: str


class SealKey(msgspec.Struct, frozen=True, kw_only=True):
    """A private key with its public key."""

    format: str = KEY_FORMAT
    private: str
    public: str
    endorsement: Endorsement | None = None

    def sign(self, content: bytes) -> str:
        """Return the signature of a text, in hex."""
        signature: bytes = _ed25519().Ed25519PrivateKey.from_private_bytes(bytes.fromhex(self.private)).sign(content)
        return signature.hex()


def generate_key(replaced: SealKey | None = None) -> SealKey:
    """Return a new key, endorsed by the key that it replaces, if any.

    Raises:
        ErgoCaptureError: the extra is not installed.
    """
    made = _ed25519().Ed25519PrivateKey.generate()
    public = made.public_key().public_bytes_raw().hex()
    endorsement = None
    if replaced is not None:
        endorsement = Endorsement(replaced.public, replaced.sign(_ENDORSED + public.encode()))
    return SealKey(private=made.private_bytes_raw().hex(), public=public, endorsement=endorsement)


def is_signed(public: str, signature: str, content: bytes) -> bool:
    """Return whether a signature over a text was made with a key."""
    ed25519 = _ed25519()
    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        key.verify(bytes.fromhex(signature), content)
    except (ValueError, _invalid_signature()):
        return False
    return True


def is_endorsed(public: str, endorsement: Endorsement) -> bool:
    """Return whether an endorsement of a key was made with the key that it names."""
    return is_signed(endorsement.by, endorsement.signature, _ENDORSED + public.encode())


def encode_key(key: SealKey) -> bytes:
    """Return the content of a key's file."""
    return msgspec.json.format(msgspec.json.encode(key), indent=2) + b"\n"


def read_key(name: str) -> SealKey:
    """Read a key's file.

    Args:
        name: a name in ``$CREDENTIALS_DIRECTORY``, or a path.

    Raises:
        ErgoCaptureError: it cannot be read, is not a key, or every user may read it; or the extra is not installed. The
            message does not contain any of its content.
    """
    path = Path(os.environ.get("CREDENTIALS_DIRECTORY", ""), name)
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_MAX_BYTES)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    if stat.S_ISREG(mode) and mode & 0o007:
        raise _unusable(path, "every user may read it", hint=f"run `chmod 600 {path}`, and think about another key")
    try:
        key = msgspec.json.decode(text, type=SealKey)
        fits = key.format == KEY_FORMAT and is_signed(key.public, key.sign(b""), b"")
    except (ValueError, RecursionError):
        fits = False
    if not fits:
        raise _unusable(path, "it is not a key for seals")
    return key


def read_public_key(text: str) -> str:
    """Return the public key of a command-line argument: the key in hex, or the path of a file that holds it.

    Raises:
        ErgoCaptureError: it is neither. The message does not contain a file's content, which may be a private key.
    """
    if _is_public(text):
        return text.lower()
    try:
        public = Path(text).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise _no_public_key(text, str(reason)) from error
    if not _is_public(public):
        raise _no_public_key(text, "the file does not hold 64 hexadecimal digits")
    return public.lower()


def _is_public(text: str) -> bool:
    return len(text) == 64 and all(digit in "0123456789abcdefABCDEF" for digit in text)


def _ed25519() -> Any:
    return import_extra("seal", "cryptography.hazmat.primitives.asymmetric.ed25519", purpose="use seals")


def _invalid_signature() -> type[Exception]:
    found: type[Exception] = import_extra("seal", "cryptography.exceptions", purpose="use seals").InvalidSignature
    return found


def _unusable(path: Path, reason: str, hint: str = "") -> ErgoCaptureError:
    return ErgoCaptureError(
        f"read seal key '{path}': {reason}",
        op="read seal key",
        path=path,
        hint=hint
        or "put it back, or make a first one with `ergo-capture seal keygen`; the unit hands it over with LoadCredential=; "
        "of a lost one see `ergo-capture help seal`",
        exit_code=ExitCode.CONFIG,
    )


def _no_public_key(text: str, reason: str) -> ErgoCaptureError:
    return ErgoCaptureError(
        f"read public key '{text}': {reason}",
        op="read public key",
        path=text,
        hint="give the key that `ergo-capture seal keygen` printed, or a file that holds it",
        exit_code=ExitCode.USAGE,
    )
