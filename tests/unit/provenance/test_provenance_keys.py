"""Key files: made once, private, refused when they are not what they should be."""

from __future__ import annotations

import multiprocessing
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from mlops.clock import FakeClock
from mlops.errors import ProvenanceError
from mlops.provenance.ed25519 import is_signed_by, parse_public_key
from mlops.provenance.keys import MACHINE, key_file, list_keys, load_key, load_machine_signer, make_key


def test_a_key_is_made_on_first_use_and_then_kept(tmp_path: Path) -> None:
    clock = FakeClock()
    first = load_machine_signer(tmp_path / "keys", clock=clock)
    clock.advance(60)
    again = load_machine_signer(tmp_path / "keys", clock=clock)
    assert first.key.public == again.key.public
    assert again.key.made_us == FakeClock().now_us()


def test_folder_and_file_are_for_the_owner_only(tmp_path: Path) -> None:
    make_key(tmp_path / "keys", "ada", clock=FakeClock())
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "keys" / "ada.pem").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["ada.pem"]


def _make_and_send(folder: Path, barrier: object, queue: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    queue.put(make_key(folder, MACHINE, clock=FakeClock()).public)  # type: ignore[attr-defined]


def test_processes_that_make_the_key_at_once_get_the_same_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(3), context.Queue()
    workers = [context.Process(target=_make_and_send, args=(tmp_path / "keys", barrier, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    publics = {queue.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    queue.close()
    assert len(publics) == 1
    assert [key.name for key in list_keys(tmp_path / "keys")] == [MACHINE]


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    make_key(tmp_path, "ada", clock=FakeClock())
    (tmp_path / "ada.pem").chmod(0o640)
    with pytest.raises(ProvenanceError, match="can be read by other users") as caught:
        load_key(tmp_path, "ada")
    assert "chmod 600" in caught.value.hint


def test_a_damaged_key_is_refused_and_not_replaced(tmp_path: Path) -> None:
    make_key(tmp_path, "ada", clock=FakeClock())
    (tmp_path / "ada.pem").write_bytes(b"-----BEGIN")
    with pytest.raises(ProvenanceError, match="not a private key in PEM"):
        make_key(tmp_path, "ada", clock=FakeClock())
    assert (tmp_path / "ada.pem").read_bytes() == b"-----BEGIN"


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    pem = generate_private_key(SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "ada.pem").write_bytes(pem)
    (tmp_path / "ada.pem").chmod(0o600)
    with pytest.raises(ProvenanceError, match="not an Ed25519 key"):
        load_key(tmp_path, "ada")


def test_a_missing_key_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ProvenanceError) as caught:
        load_key(tmp_path, "ada")
    assert "mlops keys init --person ada" in caught.value.hint


@pytest.mark.parametrize("name", ["", "../machine", "a/b", ".hidden", "x" * 65, "a b"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProvenanceError, match="cannot name a key"):
        key_file(tmp_path, name)


def test_a_signature_holds_for_its_message_and_key_only(tmp_path: Path) -> None:
    ada, bob = (make_key(tmp_path, name, clock=FakeClock()) for name in ("ada", "bob"))
    signature = ada.sign(b"message")
    assert is_signed_by(ada.public, message=b"message", signature=signature)
    assert not is_signed_by(ada.public, message=b"massage", signature=signature)
    assert not is_signed_by(bob.public, message=b"message", signature=signature)
    assert not is_signed_by("ed25519:nonsense", message=b"message", signature=signature)


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:AAAA", "ssh-ed25519 AAAA", "ed25519:%%%", "ed25519:é"])
def test_malformed_public_keys_are_refused(text: str) -> None:
    with pytest.raises(ProvenanceError, match="not a public key"):
        parse_public_key(text)


def test_a_second_spelling_of_a_public_key_is_refused(tmp_path: Path) -> None:
    public = make_key(tmp_path, "ada", clock=FakeClock()).public
    twin = public.removeprefix("ed25519:")
    with pytest.raises(ProvenanceError, match="canonical"):
        parse_public_key(twin)
