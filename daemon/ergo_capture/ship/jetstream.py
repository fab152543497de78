"""Publish to a stream of NATS JetStream, over nats-py (the extra ``nats``).

A connection lasts for one round. nats-py's own reconnects are off: the announcer repeats a round that failed.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import anyio
from anyio import CancelScope

from ergo_capture.config.shipping import AnnounceConfig
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.extras import import_extra
from ergo_capture.objects.credentials import credentials_text, key_values
from ergo_capture.objects.port import StoreRefused
from ergo_capture.ship.announcement import Announcement

#: Seconds that closing a connection may take: a server that hangs must not delay the end.
_CLOSE_SECONDS: Final = 1.0
_JWT: Final = re.compile(r"-----BEGIN NATS USER JWT-----\s+(\S+)\s")
_SEED: Final = re.compile(r"-----BEGIN USER NKEY SEED-----\s+(\S+)\s")
#: Errors of a server that last until a user or an operator changes something.
_REFUSALS: Final = re.compile(
    r"authori[sz]ation|authentication|permissions violation|revoked|secure|tls", re.IGNORECASE
)


class AnnounceError(ErgoCaptureError):
    """An announcement was not acknowledged."""


class AnnounceAway(AnnounceError):
    """No server answered with success; the same announcement may succeed later."""


class AnnounceRefused(AnnounceError):
    """The server refuses: credentials, rights, or no such stream. Trying again does not help until that is changed."""


def import_nats() -> Any:
    """Return the module.

    Raises:
        ErgoCaptureError: the extra is not installed.
    """
    # nkeys reads files of credentials.
    return import_extra("nats", "nats", "nats.errors", "nats.js.errors", "nkeys", purpose="announce bundles")


class Publisher:
    """A connection to one server.

    Args:
        client: nats-py's client, connected.
        server: the server's URL.
        timeout: seconds that an acknowledgement may take.
        said: the errors that the server reports besides its answers; the client appends to the list.
    """

    def __init__(self, client: Any, server: str, timeout: float, said: list[Exception]) -> None:
        self.server = server
        self._client = client
        self._stream = client.jetstream(timeout=timeout)
        self._timeout = timeout
        self._said = said

    async def publish(self, announcement: Announcement) -> bool:
        """Publish a message and wait for the stream's acknowledgement; return whether the stream had it already.

        Raises:
            AnnounceAway: there was no acknowledgement.
            AnnounceRefused: no stream takes the subject, or rights are missing.
        """
        subject = announcement.subject
        try:
            # Bound the whole call: the client may wait for a buffer that the server does not empty.
            with anyio.fail_after(self._timeout):
                ack = await self._stream.publish(
                    subject, announcement.body, timeout=self._timeout, headers={"Nats-Msg-Id": announcement.id}
                )
        except Exception as error:
            # Missing rights are reported besides the answers, and then there is no answer.
            told = [each for each in self._said if f'"{subject}"' in str(each)]
            raise _failure(f"announce on '{subject}' to {self.server}", told[-1] if told else error) from error
        return bool(ack.duplicate)

    async def describe_stream(self, subject: str) -> tuple[str, Any]:
        """Return the name of the stream that takes a subject, and its configuration as nats-py has it.

        Raises:
            AnnounceError: there is none, or the user may not ask for it.
        """
        try:
            with anyio.fail_after(self._timeout):
                name = await self._stream.find_stream_name_by_subject(subject)
                return name, (await self._stream.stream_info(name)).config
        except Exception as error:
            told = [each for each in self._said if "$JS.API" in str(each)]
            raise _failure(
                f"look for the stream of '{subject}' at {self.server}", told[-1] if told else error
            ) from error


@asynccontextmanager
async def connected(settings: AnnounceConfig) -> AsyncIterator[Publisher]:
    """Connect to the first server that answers, for as long as the block lasts. Credentials are read again.

    Raises:
        AnnounceAway: none of them answers.
        AnnounceRefused: one of them refuses, and none of the others takes the connection.
        ErgoCaptureError: the extra is not installed.
    """
    nats = import_nats()
    failure: AnnounceError | None = None
    for server in settings.servers:
        said: list[Exception] = []
        client = nats.NATS()
        try:
            try:
                await _connect(client, server, settings, said)
            except Exception as error:  # noqa: BLE001 - after any error the next server is tried
                if isinstance(error, AnnounceError):
                    found = error
                else:
                    unreached = isinstance(error, nats.errors.NoServersError) and said
                    found = _failure(f"connect to {server}", said[-1] if unreached else error)
                    found.__cause__ = error
                if failure is None or isinstance(found, AnnounceRefused):
                    failure = found
                continue
            yield Publisher(client, server, settings.timeout.seconds, said)
            return
        finally:
            with CancelScope(shield=True, deadline=anyio.current_time() + _CLOSE_SECONDS), suppress(Exception):
                await client.close()
    assert failure is not None
    raise failure


async def _connect(client: Any, server: str, settings: AnnounceConfig, said: list[Exception]) -> None:
    async def note(error: Exception) -> None:
        said.append(error)

    is_secure = server.startswith("tls:")

    def require_tls() -> None:
        # nats-py continues in plain text if the server, or an attacker in between, says that it does not know TLS.
        if is_secure and not client._server_info.get("tls_required"):  # noqa: SLF001 - nowhere public
            raise AnnounceRefused(
                f"connect to {server}: the server offers no TLS",
                op="announce bundles",
                hint="no secret was sent; configure TLS in the server, or write nats:// if the network is trusted",
            )

    options = _credentials(settings.credentials, require_tls)
    if is_secure:
        try:
            options["tls"] = ssl.create_default_context(cafile=settings.ca_file or None)
        except OSError as error:
            raise AnnounceRefused(
                f"read the authority's certificate '{settings.ca_file}': {error.strerror or error}",
                op="announce bundles",
                path=settings.ca_file,
                hint="name a PEM file in ship.announce.ca_file, or leave it empty for the system's authorities",
            ) from error
    timeout = settings.timeout.seconds
    with anyio.fail_after(timeout):
        await client.connect(
            servers=[server],
            name="ergo-capture",
            error_cb=note,
            allow_reconnect=False,
            # The client tries a server again until it has failed more often than this; 0 means for ever.
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=timeout,
            **options,
        )
    require_tls()


def _credentials(name: str, before_use: Callable[[], None]) -> dict[str, Any]:
    """Return nats-py's options for a file of credentials.

    Args:
        name: a name in ``$CREDENTIALS_DIRECTORY``, or a path; empty for none.
        before_use: called before a secret is sent; if it raises, the secret is not sent.

    Raises:
        AnnounceRefused: the file cannot be used. The message does not contain any of its content.
    """
    if not name:
        return {}
    try:
        text = credentials_text(name)
        jwt, seed = _JWT.search(text), _SEED.search(text)
        if jwt is not None and seed is not None:
            return _signing(jwt[1], seed[1], before_use)
        found = key_values(name, text)
    except StoreRefused as error:
        raise AnnounceRefused(
            error.message, op=error.op, path=error.path, hint="see `ergo-capture help ship` for what such a file holds"
        ) from error

    def given(value: str) -> Callable[[], str]:
        def give() -> str:
            before_use()
            return value

        return give

    if "nats_token" in found:
        return {"token": given(found["nats_token"])}
    if "nats_user" in found and "nats_password" in found:
        return {"user": given(found["nats_user"]), "password": given(found["nats_password"])}
    raise AnnounceRefused(
        f"read credentials '{name}': it has neither NATS_TOKEN nor NATS_USER and NATS_PASSWORD",
        op="read credentials",
        path=name,
        hint="write these, or name a .creds file; see `ergo-capture help ship`",
    )


def _signing(jwt: str, seed: str, before_use: Callable[[], None]) -> dict[str, Any]:
    import base64  # noqa: PLC0415

    import nkeys  # noqa: PLC0415 - the extra `nats`

    def sign(nonce: str) -> bytes:
        before_use()
        pair = nkeys.from_seed(bytearray(seed.encode()))
        try:
            return base64.b64encode(pair.sign(nonce.encode()))
        finally:
            pair.wipe()

    return {"user_jwt_cb": lambda: bytearray(jwt.encode()), "signature_cb": sign}


def _failure(what: str, error: Exception) -> AnnounceError:
    """Translate an error of nats-py."""
    if isinstance(error, AnnounceError):
        return error
    nats = import_nats()
    text = str(error).removeprefix("nats: ").strip("' ") or type(error).__name__
    kind: type[AnnounceError] = AnnounceAway
    hint = "announcements wait in the receipts and are tried again; is the server there?"
    if isinstance(error, nats.js.errors.NoStreamResponseError | nats.js.errors.NotFoundError):
        kind, text = AnnounceRefused, "no stream takes that subject"
        hint = "create a stream for it, such as `nats stream add --subjects 'ergo.bundles.>'`; see `ergo-capture help ship`"
    elif isinstance(error, nats.js.errors.APIError):
        text = f"{error.description or 'the stream failed'} ({error.code})"
        if error.code not in (500, 503):
            kind, hint = AnnounceRefused, "check the stream's limits with `ergo-capture ship check`"
    elif isinstance(error, TimeoutError):
        text = "no answer in time"
    elif isinstance(error, ValueError | KeyError | TypeError):
        kind, text = AnnounceRefused, f"the answer is not that of a stream: {text}"
        hint = "another subscriber answers on that subject; create a stream for it"
    elif isinstance(error, ssl.SSLCertVerificationError):
        kind, text = AnnounceRefused, f"its certificate is not trusted: {error.verify_message}"
        hint = "name the authority that signed it in ship.announce.ca_file"
    elif isinstance(error, nats.errors.Error) and not isinstance(error, nats.errors.NoServersError):
        if _REFUSALS.search(text):
            kind, hint = AnnounceRefused, "check ship.announce.credentials and the rights of that user"
        elif isinstance(error, nats.errors.MaxPayloadError | nats.errors.BadSubjectError):
            kind, hint = AnnounceRefused, "the server's limits are too low for it"
    return kind(f"{what}: {text}", op="announce bundles", hint=hint)
