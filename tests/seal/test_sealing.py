"""A daemon with a key seals the bundles that it publishes, and signs tombstones of those that it deletes."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest
from tests.daemons import COMMAND, PATIENCE, command_environment, event, running_daemon

from ergo_capture.bundle.names import MANIFEST_SUFFIX, SEAL_SUFFIX, TOMBSTONES
from ergo_capture.cli.app import run
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.seal import keeper
from ergo_capture.seal.chain import ChainReport, Seal, check_chain
from ergo_capture.seal.keeper import SealKeeper, read_seal, read_tombstones, sealed_bundles
from ergo_capture.seal.keys import SealKey, encode_key, generate_key, is_signed, read_key, read_public_key


@pytest.fixture
def key(tmp_path: Path) -> SealKey:
    """Write a key and return it."""
    made = generate_key()
    write_key(tmp_path / "seal.key", made)
    return made


def write_key(path: Path, key: SealKey) -> None:
    """Write a key's file."""
    path.write_bytes(encode_key(key))
    path.chmod(0o600)


def sealing(tmp_path: Path, more: str = "") -> str:
    """Return a configuration with the key."""
    return f'seal.key = "{tmp_path / "seal.key"}"\n{more}'


async def capture(place: Path, text: str, sessions: int, events: int = 2) -> None:
    """Run a daemon, and close so many sessions one after the other."""
    async with running_daemon(text, place / "state") as daemon:
        for _ in range(sessions):
            async with daemon.session(graph="default") as wire:
                await wire.say(*(event(f"e{number}") for number in range(events)), {"type": "close"})
                await wire.until("closed")


def chain_of(place: Path, key: SealKey) -> ChainReport:
    """Check the chain of a state directory."""
    bundles = place / "state" / "bundles"
    return check_chain(sealed_bundles(bundles), read_tombstones(bundles), key.public)


def numbered(place: Path, suffix: str) -> dict[int, Path]:
    """Return the files with this suffix beside bundles, by the number of the bundle."""
    found = {}
    for manifest in (place / "state" / "bundles").rglob(f"*{MANIFEST_SUFFIX}"):
        path = manifest.with_name(manifest.name.removesuffix(MANIFEST_SUFFIX) + suffix)
        if path.exists():
            found[json.loads(manifest.read_text())["sequence"]] = path
    return found


async def test_every_finished_bundle_is_sealed_in_the_order_of_publication(tmp_path: Path, key: SealKey) -> None:
    """Parts of a session, and a session of a later daemon, are in one chain."""
    async with running_daemon(sealing(tmp_path, "rotation.max_events = 2"), tmp_path / "state") as daemon:
        for _ in range(2):
            async with daemon.session(graph="default", decisions=True) as wire:
                for number in range(5):
                    await wire.say(event(f"e{number}"))
                    await wire.until_ack(number + 1, number + 1)
                await wire.say({"type": "close"})
                await wire.until("closed")
    await capture(tmp_path, sealing(tmp_path), sessions=1)
    assert chain_of(tmp_path, key) == ChainReport((), 7, 0, 1, 7, is_whole=True)


async def test_a_snapshot_is_not_sealed(tmp_path: Path, key: SealKey) -> None:
    """Its manifest will be replaced."""
    async with running_daemon(sealing(tmp_path), tmp_path / "state") as daemon, daemon.session(graph="default") as wire:
        await wire.say(event("e0"), {"type": "flush"})
        await wire.until("flushed")
        assert not list((tmp_path / "state").rglob(f"*{SEAL_SUFFIX}"))
        await wire.say({"type": "close"})
        await wire.until("closed")
        assert chain_of(tmp_path, key).sealed == 1


async def test_without_a_key_nothing_is_sealed(tmp_path: Path) -> None:
    """It is off by default."""
    await capture(tmp_path, "", sessions=1)
    assert not list((tmp_path / "state").rglob(f"*{SEAL_SUFFIX}"))


async def test_a_manifest_that_a_crash_left_without_a_seal_is_sealed_first(tmp_path: Path, key: SealKey) -> None:
    """It is sealed before the next bundle, at its place in the chain."""
    await capture(tmp_path, sealing(tmp_path), sessions=4)
    seals = numbered(tmp_path, SEAL_SUFFIX)
    for number in (3, 4):
        seals[number].unlink()
    await capture(tmp_path, sealing(tmp_path), sessions=1)
    assert chain_of(tmp_path, key) == ChainReport((), 5, 0, 1, 5, is_whole=True)


async def test_a_start_seals_what_a_crash_left_without_a_seal(tmp_path: Path, key: SealKey) -> None:
    """No further bundle has to be published for it."""
    await capture(tmp_path, sealing(tmp_path), sessions=3)
    numbered(tmp_path, SEAL_SUFFIX)[3].unlink()
    async with running_daemon(sealing(tmp_path), tmp_path / "state"):
        with anyio.fail_after(PATIENCE):
            while 3 not in numbered(tmp_path, SEAL_SUFFIX):
                await anyio.sleep(0.01)
    assert chain_of(tmp_path, key) == ChainReport((), 3, 0, 1, 3, is_whole=True)


async def test_the_last_seal_is_found_without_reading_all_of_them(
    tmp_path: Path, key: SealKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read from the newest on: the first bundle after a start must not wait for thousands of them."""
    await capture(tmp_path, sealing(tmp_path, "retention.max_bundles = 6"), sessions=8)
    numbered(tmp_path, SEAL_SUFFIX)[8].unlink()
    read, checked = [], []

    def reading(path: Path) -> Seal | None:
        read.append(path)
        return read_seal(path)

    def checking(public: str, signature: str, text: bytes) -> bool:
        checked.append(signature)
        return is_signed(public, signature, text)

    monkeypatch.setattr(keeper, "read_seal", reading)
    monkeypatch.setattr(keeper, "is_signed", checking)
    manifest = numbered(tmp_path, MANIFEST_SUFFIX)[8]
    SealKeeper(tmp_path / "state" / "bundles", key).seal(manifest)
    # Those of 8 and 7; then that of 8 again, before it is sealed.
    assert [path.name.split("-")[1] for path in read] == ["8", "7", "8", "8"]
    assert len(checked) == 1
    assert chain_of(tmp_path, key).is_right


async def test_a_seal_beside_a_damaged_manifest_is_the_last_one(tmp_path: Path, key: SealKey) -> None:
    """The chain goes on after it, so that no other bundle seems to be missing."""
    await capture(tmp_path, sealing(tmp_path), sessions=3)
    numbered(tmp_path, MANIFEST_SUFFIX)[3].write_text("{")
    await capture(tmp_path, sealing(tmp_path), sessions=1)
    assert [finding.kind for finding in chain_of(tmp_path, key).findings] == ["changed"]


async def test_bundles_from_before_the_key_are_not_in_the_chain(tmp_path: Path, key: SealKey) -> None:
    """The chain begins with the first bundle that is published with the key."""
    await capture(tmp_path, "", sessions=2)
    await capture(tmp_path, sealing(tmp_path), sessions=2)
    assert chain_of(tmp_path, key) == ChainReport((), 2, 0, 3, 4, is_whole=True)


async def test_another_key_goes_on_with_the_chain(tmp_path: Path, key: SealKey) -> None:
    """The first key endorsed it, so whoever trusts the first trusts it too."""
    await capture(tmp_path, sealing(tmp_path), sessions=2)
    write_key(tmp_path / "seal.key", generate_key(key))
    await capture(tmp_path, sealing(tmp_path), sessions=2)
    assert chain_of(tmp_path, key) == ChainReport((), 4, 0, 1, 4, is_whole=True)


async def test_retention_leaves_a_signed_tombstone(tmp_path: Path, key: SealKey) -> None:
    """A bundle that retention deleted is not missed; one that somebody else deleted is."""
    await capture(tmp_path, sealing(tmp_path), sessions=5)
    async with running_daemon(sealing(tmp_path, "retention.max_bundles = 3"), tmp_path / "state") as daemon:
        with anyio.fail_after(PATIENCE):
            while daemon.service.retention.pruned < 2:
                await anyio.sleep(0.01)
    assert chain_of(tmp_path, key) == ChainReport((), 3, 2, 1, 5, is_whole=True)
    assert [stone.reason for stone in read_tombstones(tmp_path / "state" / "bundles")] == ["max_bundles"] * 2
    for suffix in (MANIFEST_SUFFIX, SEAL_SUFFIX, ".capture.json"):
        numbered(tmp_path, suffix).get(4, Path("/nonexistent")).unlink(missing_ok=True)
    found = chain_of(tmp_path, key).findings
    assert [finding.kind for finding in found] == ["missing"]


async def test_a_tombstone_that_cannot_be_written_keeps_its_bundle(tmp_path: Path, key: SealKey) -> None:
    """Without a tombstone the bundle would seem to have been taken away."""
    await capture(tmp_path, sealing(tmp_path), sessions=3)
    (tmp_path / "state" / "bundles" / TOMBSTONES).mkdir()
    async with running_daemon(sealing(tmp_path, "retention.max_bundles = 1"), tmp_path / "state") as daemon:
        await daemon.service.retention.take_round()
        assert daemon.service.retention.pruned == 0
    assert len(numbered(tmp_path, ".capture.json")) == 3


def prune_command(tmp_path: Path, daemon_socket: Path) -> list[str]:
    """Write the configuration of a daemon started with ``--socket``; return a command line that asks this daemon."""
    path = tmp_path / "config.toml"
    path.write_text(sealing(tmp_path))
    options = ["--config", str(path), "--state-dir", str(tmp_path / "state"), "--socket", str(daemon_socket)]
    return [*COMMAND, "bundles", "prune", "--max-bundles", "1", *options]


async def test_the_command_has_the_running_daemon_sign_or_refuses(tmp_path: Path, key: SealKey) -> None:
    """Only the daemon has the key."""
    async with running_daemon(sealing(tmp_path), tmp_path / "state") as daemon:
        for _ in range(3):
            async with daemon.session(graph="default") as wire:
                await wire.say(event("e0"), {"type": "close"})
                await wire.until("closed")
        line = prune_command(tmp_path, daemon.socket)
        done = await anyio.run_process(line, env=command_environment(), check=False)
        assert done.returncode == 0, done.stderr
    assert chain_of(tmp_path, key) == ChainReport((), 1, 2, 1, 3, is_whole=True)
    await capture(tmp_path, sealing(tmp_path), sessions=1)
    refused = await anyio.run_process(line, env=command_environment(), check=False)
    assert refused.returncode == 1
    assert "its tombstone has to be signed, and no daemon answers" in refused.stderr.decode()
    assert chain_of(tmp_path, key) == ChainReport((), 2, 2, 1, 4, is_whole=True)


async def test_the_daemon_buries_bundles_of_its_own_only(tmp_path: Path, key: SealKey) -> None:
    """Users of its control socket cannot have it sign anything else."""
    async with running_daemon(sealing(tmp_path), tmp_path / "state") as daemon:
        answer = await daemon.ask("bury", bundle=str(tmp_path / "x" / "y.capture.json"), reason="")
        assert (answer["type"], answer["code"]) == ("error", "forbidden")
    async with running_daemon("", tmp_path / "state") as daemon:
        answer = await daemon.ask("bury", bundle=str(tmp_path / "state/bundles/g/y.capture.json"), reason="")
        assert "seals nothing" in answer["message"]


# --- commands ---


async def test_verify_checks_the_chain_of_a_directory(
    tmp_path: Path, key: SealKey, capfd: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 1 if the chain is wrong, though every bundle is sound."""
    await capture(tmp_path, sealing(tmp_path), sessions=3)
    bundles = str(tmp_path / "state" / "bundles")

    def verify(*names: str) -> tuple[int, str]:
        code = run(["verify", *names, "--seal", key.public])
        return code, capfd.readouterr().out

    code, out = await anyio.to_thread.run_sync(verify, str(tmp_path / "state"))
    assert (code, "seals: ok, 3 sealed" in out) == (0, True)
    # For the directory of one graph, or a flat one, the seal of each bundle is printed.
    code, out = await anyio.to_thread.run_sync(verify, str(tmp_path / "state" / "bundles" / "default"))
    assert (code, out.count(".capture.json: seal: ok")) == (0, 3)
    code, out = await anyio.to_thread.run_sync(verify, bundles)
    assert code == 0
    assert "seals: ok, 3 sealed, 0 pruned in order, number 1 to 3" in out
    one = str(numbered(tmp_path, ".capture.json")[2])
    code, out = await anyio.to_thread.run_sync(verify, one)
    assert (code, "seal: ok" in out) == (0, True)
    manifest = numbered(tmp_path, MANIFEST_SUFFIX)[2]
    manifest.write_text(manifest.read_text().replace('"opened_at": "2', '"opened_at": "1'))
    for names in (bundles, one):
        code, out = await anyio.to_thread.run_sync(verify, names)
        assert code == 1
        assert "its manifest is not the one that was sealed" in out


async def test_a_directory_whose_seals_were_all_taken_away_is_not_right(
    tmp_path: Path, key: SealKey, capfd: pytest.CaptureFixture[str]
) -> None:
    """The option says that there should be seals."""
    await capture(tmp_path, sealing(tmp_path), sessions=2)
    for seal in numbered(tmp_path, SEAL_SUFFIX).values():
        seal.unlink()
    names = ["verify", str(tmp_path / "state" / "bundles"), "--seal", key.public]
    assert await anyio.to_thread.run_sync(run, names) == 1
    assert "seals: no bundle is sealed" in capfd.readouterr().out


def test_keygen_writes_a_key_for_its_owner_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It prints the public key, and never writes over a file."""
    path = tmp_path / "seal.key"
    assert run(["seal", "keygen", "-o", str(path)]) == 0
    public = capfd.readouterr().out.strip()
    assert (read_key(str(path)).public, read_public_key(public)) == (public, public)
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    assert run(["seal", "keygen", "-o", str(path)]) == 1
    assert path.read_bytes() == before
    assert run(["seal", "keygen", "-o", str(tmp_path / "next.key"), "--replaces", str(path)]) == 0
    endorsement = read_key(str(tmp_path / "next.key")).endorsement
    assert endorsement is not None
    assert endorsement.by == public


def test_keygen_without_its_directory_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The hint is about the directory, and not about a key that exists."""
    assert run(["seal", "keygen", "-o", str(tmp_path / "nowhere" / "seal.key")]) == 1
    err = capfd.readouterr().err
    assert "No such file or directory" in err
    assert "a directory that is there" in err


def test_config_check_reads_the_key(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds a key that the daemon would refuse, and says that it does not see the unit's credentials."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    path, config = tmp_path / "seal.key", tmp_path / "capture.toml"
    config.write_text(f'seal.key = "{path}"\n')
    check = ["config", "check", str(config)]
    assert run(check) == 78
    assert "No such file" in capfd.readouterr().err
    write_key(path, generate_key())
    assert run(check) == 0
    path.chmod(0o644)
    assert run(check) == 78
    assert "every user may read it" in capfd.readouterr().err
    path.unlink()
    config.write_text('seal.key = "seal.key"\n')
    assert run(check) == 0
    assert "LoadCredential=seal.key:PATH" in capfd.readouterr().err


@pytest.mark.parametrize("command", [["verify", "run.capture.json"], ["ship", "audit"], ["fleet", "verify"]])
def test_a_public_key_is_read_first(
    command: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty key, as of an unset variable, is wrong usage; a private key is not printed."""
    monkeypatch.chdir(tmp_path)
    private = generate_key()
    write_key(tmp_path / "seal.key", private)
    assert run([*command, "--seal", ""]) == 2
    assert run([*command, "--seal", "seal.key"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("read public key") == 2
    assert private.private[:8] not in err


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        (None, 0o600, "No such file"),
        (b"{}", 0o600, "it is not a key for seals"),
        (b"\xff", 0o600, "it is not a key for seals"),
        (encode_key(SealKey(private="00" * 32, public="11" * 32)), 0o600, "it is not a key for seals"),
        (encode_key(generate_key()), 0o644, "every user may read it"),
    ],
)
def test_what_is_no_key_is_refused(tmp_path: Path, text: bytes | None, mode: int, reason: str) -> None:
    """The message holds nothing of its content."""
    path = tmp_path / "seal.key"
    if text is not None:
        path.write_bytes(text)
        path.chmod(mode)
    with pytest.raises(ErgoCaptureError, match=reason) as caught:
        read_key(str(path))
    assert caught.value.exit_code == 78


@pytest.mark.parametrize("text", ["", "12", "g" * 64, "/nonexistent"])
def test_what_is_no_public_key_is_refused(tmp_path: Path, text: str) -> None:
    """It may be on the command line or in a file."""
    with pytest.raises(ErgoCaptureError, match="read public key"):
        read_public_key(text)
    path = tmp_path / "public"
    path.write_text(text)
    with pytest.raises(ErgoCaptureError, match="read public key"):
        read_public_key(str(path))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error has the command that installs it."""
    import sys

    for name in [*sys.modules]:
        if name.startswith("cryptography"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ErgoCaptureError, match="cryptography") as caught:
        generate_key()
    assert caught.value.hint == "pip install 'ergo-capture[seal]'"
