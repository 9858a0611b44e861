"""Digests name content, not names of machines, times or rights."""

import hashlib
import os
from pathlib import Path

import pytest

from mlops.provenance.digest import canonical_json, digest_bytes, digest_code, digest_folder, digest_json, hex_of


def test_a_digest_is_the_sha256_that_other_tools_print() -> None:
    assert digest_bytes(b"abc") == "sha256:" + hashlib.sha256(b"abc").hexdigest()


def test_canonical_json_has_one_spelling() -> None:
    assert canonical_json({"b": 1, "a": [1.5, "é"]}) == '{"a":[1.5,"é"],"b":1}'.encode()
    assert digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_a_folder_digest_sees_names_and_contents_only(tmp_path: Path) -> None:
    for root in ("one", "two"):
        (tmp_path / root / "sub").mkdir(parents=True)
        (tmp_path / root / "sub" / "file").write_text("content")
    os.utime(tmp_path / "two" / "sub" / "file", (1, 1))
    (tmp_path / "two" / "sub" / "file").chmod(0o600)
    assert digest_folder(tmp_path / "one") == digest_folder(tmp_path / "two")
    (tmp_path / "two" / "sub" / "file").rename(tmp_path / "two" / "sub" / "other")
    assert digest_folder(tmp_path / "one") != digest_folder(tmp_path / "two")


def test_the_digest_of_one_room_does_not_change_with_another() -> None:
    assert digest_code("mlops.ledger") != digest_code("mlops.provenance")
    assert digest_code("mlops.ledger", "mlops.provenance") == digest_code("mlops.ledger", "mlops.provenance")
    with pytest.raises((ValueError, ModuleNotFoundError)):
        digest_code("mlops.no_such_room")


def test_what_is_no_digest_is_refused() -> None:
    assert hex_of("sha256:" + "a" * 64) == "a" * 64
    for bad in ("a" * 64, "sha256:" + "A" * 64, "sha256:abc", "md5:" + "a" * 64):
        with pytest.raises(ValueError, match="not a digest"):
            hex_of(bad)
