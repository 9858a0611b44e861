"""A dataset twenty times larger than the memory it may use is read and trained on; memory is asked of the kernel."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from mlops.datasets.building import finish_build, write_shard
from mlops.datasets.manifest import Manifest
from mlops.datasets.parts import Part
from mlops.datasets.schema import Schema
from mlops.datasets.shards import ColumnSums, writer_name
from mlops.datasets.typing_rows import arrow_schema
from mlops.provenance.digest import hex_of

ALLOWED_MB = 16
SHARDS, ROWS, COLUMNS = 400, 5_000, 40
SCRIPT = """
import json, pathlib, pickle, re, sys
import torch
from mlops.datasets.reader import ShardReader

def private_mb():
    return int(re.search(r"RssAnon:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024

torch.set_num_threads(1)
version = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
reader = ShardReader(version, pathlib.Path(sys.argv[2]), window_rows=8_192, cache_bytes=8 << 20)
net, peak, rows = torch.nn.Linear(40, 2), 0.0, 0
optimizer = torch.optim.SGD(net.parameters(), 0.01)
run = dict(batch_size=1_024, seed=1, rank=0, world_size=1)
def train(batches):
    global peak, rows
    for batch in batches:
        loss = torch.nn.functional.cross_entropy(net(torch.stack(list(batch.features.values()), 1)), batch.label)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        peak, rows = max(peak, private_mb()), rows + len(batch.label)

some = reader.batches("train", epoch=9, **run)
train(next(some) for _ in range(8))  # loads what torch and pyarrow load once
some.close()
base, peak, rows = private_mb(), 0.0, 0
train(reader.batches("train", epoch=0, **run))
print(json.dumps({"grown_mb": peak - base, "rows": rows}))
"""


@pytest.fixture
def wide_version(tmp_path, stored):
    """Random numbers: pickled version, and the size of its decoded columns in MB."""
    numbers = [{"name": f"x{n}", "kind": "number", "roles": ["feature"]} for n in range(COLUMNS)]
    label = {"name": "y", "kind": "category", "roles": ["label"], "categories": ["0", "1"]}
    schema = Schema.model_validate(
        dict.fromkeys(("title", "source", "credit", "licence", "lawful_basis", "subject"), "test")
        | {"name": "wide", "purposes": [], "subject_key": {"public": "test"}, "groups": SHARDS}
        | {"splits": {"train": [0, SHARDS]}, "columns": [*numbers, label]}
    )
    sums, shards, chance = ColumnSums(), [], np.random.default_rng(1)
    for group in range(SHARDS):
        subjects = pa.array([group.to_bytes(8, "big") + bytes(24)] * ROWS, pa.binary(32))
        columns = [pa.array(chance.random(ROWS, dtype=np.float32)) for _ in range(COLUMNS)]
        answers = pa.array(chance.integers(0, 2, ROWS))
        rows = pa.Table.from_arrays([*columns, answers, subjects], schema=arrow_schema(schema.columns))
        shards.append(write_shard(tmp_path / "build", rows, split="train", group=group, part=0, sums=sums))
    manifest = Manifest("wide", hex_of(schema.digest), tuple(shards), sums.finish(), writer_name())
    build = finish_build(tmp_path / "build", manifest, schema, part=Part("wide"), overlap=0)
    return pickle.dumps(stored(build, tmp_path / "objects")), SHARDS * ROWS * (4 * COLUMNS + 8) / 1e6


def test_a_dataset_twenty_times_larger_than_the_memory_it_takes_is_trained_on(tmp_path, wide_version):
    """336 MB of decoded columns in 400 shards; windows of two shards, a cache of ten."""
    version, decoded_mb = wide_version
    assert decoded_mb >= 20 * ALLOWED_MB
    (tmp_path / "version.pickle").write_bytes(version)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "version.pickle"), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    assert found["rows"] == SHARDS * ROWS
    assert found["grown_mb"] <= ALLOWED_MB
    cached = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.arrow"))
    assert cached <= 8 << 20
