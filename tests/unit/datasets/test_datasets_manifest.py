import json
from dataclasses import replace

import pytest

from mlops.datasets.manifest import Manifest, Shard, parse_manifest, render_manifest
from mlops.errors import DatasetError

SHARD = Shard(relpath="train/g0.parquet", md5="0" * 32, sha256="1" * 64, bytes=10, rows=3, group=0, split="train")
OTHER = replace(SHARD, relpath="test/g1.parquet", group=1, split="test", rows=4)
MANIFEST = Manifest(dataset="people", schema_sha256="2" * 64, shards=(OTHER, SHARD))


def test_round_trip():
    assert parse_manifest(render_manifest(MANIFEST), source="m") == MANIFEST
    assert (MANIFEST.rows, MANIFEST.bytes, MANIFEST.splits) == (7, 20, ("test", "train"))
    assert MANIFEST.shards_of("train") == (SHARD,)


@pytest.mark.parametrize("field", ["md5", "sha256", "bytes", "rows", "group", "split", "relpath"])
def test_every_field_of_a_shard_is_in_the_digest(field):
    value = getattr(SHARD, field)
    other = value + 1 if isinstance(value, int) else value[:-1] + ("3" if value[-1] != "3" else "4")
    assert replace(MANIFEST, shards=(OTHER, replace(SHARD, **{field: other}))).digest != MANIFEST.digest


def edited(**changes) -> bytes:
    content = json.loads(render_manifest(MANIFEST))
    content["shards"][0].update(changes)
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


BROKEN = {
    "no json": b"{",
    "another version": render_manifest(MANIFEST).replace(b'"version":1', b'"version":2'),
    "a path that climbs": edited(relpath="../g1.parquet"),
    "an absolute path": edited(relpath="/etc/passwd"),
    "a path with a dot": edited(relpath="test/./g1.parquet"),
    "a short digest": edited(md5="00"),
    "negative rows": edited(rows=-1),
    "an unknown field": edited(colour="red"),
    "shards out of order": edited(relpath="zzz/g1.parquet"),
    "a shard listed twice": edited(relpath="train/g0.parquet"),
    "another spelling": render_manifest(MANIFEST) + b"\n",
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_manifest_is_refused_for(case):
    with pytest.raises(DatasetError, match="is not a manifest"):
        parse_manifest(BROKEN[case], source="m")


def test_an_unknown_split_names_the_known_ones():
    with pytest.raises(DatasetError) as caught:
        MANIFEST.shards_of("holdout")
    assert "test, train" in caught.value.hint
