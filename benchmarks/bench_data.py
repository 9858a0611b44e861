"""The data plane against DVC's command line, pyarrow, MosaicML streaming and litdata: `make bench-data`.

One part by `--only NAME`; its rows replace those of the last run.

Writes benchmarks/results/data.json. Leaves to others: correctness (tests/*/datasets).
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from reporting import Row, merge, report

from mlops.datasets.building import finish_build, write_shard
from mlops.datasets.forgetting import forget_subjects
from mlops.datasets.keeping import keep_builds
from mlops.datasets.locations import prepare_dvc_files
from mlops.datasets.manifest import Manifest
from mlops.datasets.parts import Part, list_shards
from mlops.datasets.pins import render_directory
from mlops.datasets.reader import ShardReader
from mlops.datasets.rewriting import rewrite_shards
from mlops.datasets.schema import SUBJECT_COLUMN, Schema
from mlops.datasets.shards import ColumnSums, writer_name
from mlops.datasets.subject_index import load_subjects
from mlops.datasets.typing_rows import arrow_schema
from mlops.datasets.version import load_dataset_version, read_shard
from mlops.places import Places
from mlops.provenance.digest import hex_of

COLUMNS = 8
ROOT = Path(__file__).resolve().parents[1]
STEP_SECONDS = 0.05
PEER_PLACE = ".venv-bench-data"
PEER_PACKAGES = ("mosaicml-streaming==0.13.0", "litdata==0.2.76", "pyarrow")
PEER_FORMS = {"rows": "one sample a row, as its manual shows", "blocks": "one sample a whole batch of columns"}


def make_schema(groups: int) -> Schema:
    numbers = [{"name": f"x{n}", "kind": "number", "roles": ["feature"]} for n in range(COLUMNS)]
    label = {"name": "y", "kind": "category", "roles": ["label"], "categories": ["0", "1"]}
    return Schema.model_validate(
        {
            "name": "big",
            "title": "Random numbers",
            "source": "random",
            "credit": "benchmark",
            "licence": "CC0-1.0",
            "lawful_basis": "synthetic",
            "purposes": ["evaluation"],
            "subject": "row",
            "subject_key": {"public": "benchmark"},
            "groups": groups,
            "splits": {"train": [0, groups]},
            "columns": [*numbers, label],
        }
    )


def make_rows(schema: Schema, group: int, rows: int) -> pa.Table:
    """Random rows whose keyed hashes lie in `group`, four for each person."""
    chance = np.random.default_rng(group)
    people = chance.integers(0, 2**56, size=(rows + 3) // 4, dtype=np.uint64) * np.uint64(schema.groups) + np.uint64(
        group
    )
    hashes = np.zeros((rows, 32), dtype=np.uint8)
    hashes[:, :8] = np.repeat(people, 4)[:rows].astype(">u8").view(np.uint8).reshape(-1, 8)
    subjects = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), rows, [None, pa.py_buffer(hashes.tobytes())])
    numbers = [pa.array(chance.random(rows, dtype=np.float32)) for _ in range(COLUMNS)]
    label = pa.array(chance.integers(0, 2, rows))
    return pa.Table.from_arrays([*numbers, label, subjects], schema=arrow_schema(schema.columns))


def make_dataset(places: Places, *, shards: int, rows: int) -> None:
    schema = make_schema(shards)
    places.root.mkdir(parents=True)
    prepare_dvc_files(places)
    subprocess.run(["git", "init", "-q", str(places.root)], check=True)
    folder = places.cache / "bench" / "version"
    sums, made = ColumnSums(), []
    for group in range(shards):
        table = make_rows(schema, group, rows)
        made.append(write_shard(folder, table, split="train", group=group, part=0, sums=sums))
    manifest = Manifest("big", hex_of(schema.digest), tuple(made), sums.finish(), writer_name())
    keep_builds(places, [finish_build(folder, manifest, schema, part=Part("big"), overlap=0)])
    shutil.rmtree(folder)


def run_dvc(places: Places, *arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=places.root,
        check=True,
        capture_output=True,
        env={**os.environ, "DVC_NO_ANALYTICS": "1"},
    )
    return time.perf_counter() - started


def measure_change(places: Places) -> list[Row]:
    """One shard changes: ours in process, then the same through DVC's command line."""
    version = load_dataset_version(places, "big")
    shard = version.manifest.shards[3]
    rows = read_shard(version, shard)
    changed = rows.set_column(0, rows.schema.field(0), pa.array(np.zeros(shard.rows, dtype=np.float32)))
    started = time.perf_counter()
    done = rewrite_shards(places, version, {shard.relpath: changed})
    ours = time.perf_counter() - started
    file = places.dataset_folder("big") / version.manifest.shards[5].relpath
    good, pinned = file.read_bytes(), places.datasets_dvc.read_bytes()
    content = bytearray(good)
    content[-20] ^= 1
    file.chmod(0o644)
    file.write_bytes(bytes(content))
    rival = run_dvc(places, "add", str(file.relative_to(places.root))) + run_dvc(places, "push")
    places.datasets_dvc.write_bytes(pinned)  # DVC's version has no manifest of ours
    file.write_bytes(good)
    size = f"{len(version.manifest.shards)} shards of {shard.bytes / 1e6:.1f} MB"
    return [
        line(
            "change 1 shard, commit and push",
            ours=ours,
            rival=rival,
            asked="at most 0.5",
            unit="s",
            holds=ours <= 0.5,
            how=f"{size}; ours writes the parquet, reads and hashes one shard, moves {done.moved_objects} objects "
            "(shard, manifest, .dir), in process; rival is `dvc add FILE` + `dvc push`, which get the bytes ready-made",
        )
    ]


def measure_forgetting(places: Places) -> list[Row]:
    version = load_dataset_version(places, "big")
    shard = version.manifest.shards[7]
    subject = read_shard(version, shard, columns=[SUBJECT_COLUMN]).column(0)[11].as_py()
    load_subjects(places, version, shard)  # the index is there
    started = time.perf_counter()
    done = forget_subjects(places, "big", [subject])
    ours = time.perf_counter() - started
    size = f"{version.manifest.bytes / 1e9:.2f} GB in {len(version.manifest.shards)} shards"
    how = f"{done.rows_removed} rows in {len(done.rewrite.replaced)} shard of {size}, with the index there"
    asked = "at most 1"
    name = "forget one person, data path"
    return [line(name, ours=ours, rival=None, asked=asked, unit="s", holds=ours <= 1, how=how)]


def measure_reading(places: Places, *, batch_size: int) -> list[Row]:
    version = load_dataset_version(places, "big")
    cache = places.cache / "shards"
    files = [places.dataset_folder("big") / shard.relpath for shard in version.manifest.shards]
    names = [f"x{n}" for n in range(COLUMNS)] + ["y"]
    run = {"batch_size": batch_size, "seed": 1, "epoch": 0, "rank": 0, "world_size": 1}
    cold = measure_utilisation(version, cache, run)
    rates: dict[str, list[float]] = {"ours": [], "pyarrow": []}
    for _ in range(3):
        started = time.perf_counter()
        rows = sum(pq.read_table(file, columns=names, use_threads=False).num_rows for file in files)
        rates["pyarrow"].append(rows / (time.perf_counter() - started))
        started = time.perf_counter()
        reader = ShardReader(version, cache)
        rows = sum(len(batch.label) for batch in reader.batches("train", shuffle=False, **run))
        rates["ours"].append(rows / (time.perf_counter() - started))
    ours, rival = max(rates["ours"]) / 1e6, max(rates["pyarrow"]) / 1e6
    cached = measure_utilisation(version, cache, run)
    return [
        *measure_peers(places, files[0], ours=ours, batch_size=batch_size),
        line(
            "sequential epoch from the node cache",
            ours=ours,
            rival=rival,
            asked="at least 80 % of pyarrow",
            unit="million rows/s",
            holds=ours >= 0.8 * rival,
            how="best of 3; ours gives torch batches by role from decoded shards; rival is pyarrow reading the parquet "
            "files on one thread, columns only",
        ),
        line(
            "accelerator utilisation, cold",
            ours=cold,
            rival=0.9,
            asked="at least 0.95",
            unit="share",
            holds=cold >= 0.95,
            how=f"emulated {STEP_SECONDS * 1000:.0f} ms step, shuffled, batches of {batch_size}, first window not "
            "counted; rival is the pass mark of MLPerf Storage",
        ),
        line(
            "accelerator utilisation, cached",
            ours=cached,
            rival=0.9,
            asked="at least 0.99",
            unit="share",
            holds=cached >= 0.99,
            how="the same with the node cache filled",
        ),
    ]


def measure_peers(places: Places, file: Path, *, ours: float, batch_size: int) -> list[Row]:
    """Our rate of a sequential epoch (million rows/s) against MosaicML streaming and litdata over rows of one shard."""
    python = ROOT / PEER_PLACE / "bin" / "python"
    if not python.is_file():
        print(f"installing {', '.join(PEER_PACKAGES)} into {PEER_PLACE}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(ROOT / PEER_PLACE)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True)
    few = places.root / "few.parquet"
    pq.write_table(pq.read_table(file).slice(0, 20_000), few)
    found = []
    for peer in ("streaming", "litdata"):
        for form, source in (("rows", few), ("blocks", file)):
            folder = places.root / "peers" / f"{peer}-{form}"
            command = [python, "benchmarks/data_peers.py", peer, form, source, folder, str(batch_size)]
            done = subprocess.run(
                ["timeout", "240", *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False
            )
            if done.returncode:
                print(f"{peer} with {form} failed: {done.stderr[-2000:]}", file=sys.stderr)
                continue
            rival = json.loads(done.stdout[done.stdout.rindex("{") :])["rate"] / 1e6
            how = f"the same rows of one shard, {PEER_FORMS[form]}, torch's DataLoader with two workers; best of 3"
            name = f"sequential epoch, ours and {peer} ({form})"
            holds = ours > rival
            asked = "ahead of it"
            found.append(line(name, ours=ours, rival=rival, asked=asked, unit="million rows/s", holds=holds, how=how))
    return found


def measure_utilisation(version, cache: Path, run: dict) -> float:
    reader = ShardReader(version, cache)
    batches = iter(reader.batches("train", **run))
    next(batches)  # the first window has nothing to hide behind
    busy, started = 0.0, time.perf_counter()
    for _, _batch in zip(range(120), batches, strict=False):
        step = time.perf_counter()
        time.sleep(STEP_SECONDS)
        busy += time.perf_counter() - step
    return busy / (time.perf_counter() - started)


PLAN = """
import json, re, time
import numpy as np
from mlops.datasets.placement import assign_groups, canonical_groups
from mlops.datasets.plan import plan_epoch
shards = np.random.default_rng(1).integers(0, 2**63, size=1_000_000, dtype=np.uint64)
started = time.perf_counter()
owners = assign_groups([f"node-{n}" for n in range(1024)])
load = np.bincount(owners[canonical_groups(shards)], minlength=1024)
plan = plan_epoch((4096,) * 1_000_000, digest="d", split="train", seed=1, epoch=0)
seconds = time.perf_counter() - started
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024  # ru_maxrss outlives exec
print(json.dumps([seconds, time.process_time(), peak, float(load.max() / load.mean()), len(plan.windows)]))
"""


def measure_plan() -> list[Row]:
    done = subprocess.run([sys.executable, "-c", PLAN], capture_output=True, text=True, check=True)
    seconds, cpu_seconds, peak, skew, windows = json.loads(done.stdout)
    how = (
        f"1,000,000 shards, 1,024 nodes, {cpu_seconds:.1f} s of CPU with imports; "
        f"fullest node has {skew:.2f} times the mean; {windows} windows; own process"
    )
    return [
        line("plan, time", ours=seconds, rival=None, asked="under 5", unit="s", holds=seconds < 5, how=how),
        line("plan, peak memory", ours=peak, rival=None, asked="under 500", unit="MB", holds=peak < 500, how=how),
    ]


def measure_listing(folder: Path) -> list[Row]:
    """256 partitions of 1,000 shards: our listing, and DVCFileSystem.find over the same objects."""
    places = Places(folder)
    folder.mkdir()
    prepare_dvc_files(places)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    url = f"{places.state}/dvc-cache/files/md5"
    digests = []
    for number in range(256):
        entries = {f"train/g{n:06d}-000.parquet": hashlib.md5(b"%d %d" % (number, n)).hexdigest() for n in range(1000)}
        content = render_directory(entries)
        digest = hashlib.md5(content).hexdigest() + ".dir"
        path = Path(url) / digest[:2] / digest[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        out = {"md5": digest, "size": 1, "nfiles": 1000, "hash": "md5", "path": f"big/p{number:05d}"}
        (folder / "datasets" / f"big.p{number:05d}.dvc").write_text(yaml.safe_dump({"outs": [out]}))
        digests.append(f"p{number:05d}={digest}")
    started = time.perf_counter()
    count = sum(1 for _ in list_shards((url,), "big", dvc_digest=",".join(digests)))
    ours = time.perf_counter() - started
    script = (
        "import time; from dvc.api import DVCFileSystem; t=time.perf_counter(); fs=DVCFileSystem('.');"
        "n=len(fs.find('datasets', detail=False, dvc_only=True)); print(time.perf_counter()-t, n)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    rival = float(done.stdout.split()[0]) if done.returncode == 0 else None
    how = f"{count} shards in 256 partitions, each `.dir` verified; rival is DVCFileSystem.find ({done.stdout.strip()})"
    return [line("list 256,000 shards", ours=ours, rival=rival, asked="under 1", unit="s", holds=ours < 1, how=how)]


def line(name, *, ours, rival, asked, unit, holds, how) -> Row:
    return Row(
        name,
        ours=ours,
        rival=rival,
        asked=asked,
        unit=unit,
        holds=holds,
        how=f"{how}; load average {os.getloadavg()[0]:.1f}",
    )


IMPORTS = {"images": 1.2, "parquet": 1.2, "arrow": 1.2, "csv": 1.2, "jsonl": 0.4}
"""Format to gigabytes of decoded columns; as JSON lines 0.4 are 1.4 of text."""


def measure_imports(scratch: Path, kinds: list[str]) -> list[Row]:
    """Peak memory of importing more than a gigabyte in few isolation groups."""
    found = []
    for kind in kinds:
        command = [sys.executable, "benchmarks/data_imports.py", kind, str(scratch / kind), str(IMPORTS[kind])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        made = json.loads(done.stdout)
        shutil.rmtree(scratch / kind)
        peak, rows = made["peak_mb"], made["rows"]
        how = f"VmHWM of the whole process; {rows:,} rows, {IMPORTS[kind]} GB decoded, in two isolation groups"
        name = f"import, peak memory ({kind})"
        found.append(line(name, ours=peak, rival=None, asked="under 1000", unit="MB", holds=peak < 1000, how=how))
    return found


def measure_plane(scratch: Path, *, shards: int, rows: int) -> list[Row]:
    places = Places(scratch / "project")
    make_dataset(places, shards=shards, rows=rows)
    return measure_change(places) + measure_forgetting(places) + measure_reading(places, batch_size=8192)


def main() -> None:
    parts = ["plane", "plan", *(f"import-{kind}" for kind in IMPORTS)]
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--rows", type=int, default=380_000, help="rows of a shard; 380,000 make 17 MB")
    parser.add_argument("--only", choices=parts, action="append")
    options = parser.parse_args()
    chosen = options.only or parts
    with tempfile.TemporaryDirectory(prefix="bench-data-") as folder:
        scratch, results = Path(folder), []
        if "plane" in chosen:
            results += measure_plane(scratch, shards=options.shards, rows=options.rows)
        if "plan" in chosen:
            results += measure_plan() + measure_listing(scratch / "listing")
        results += measure_imports(scratch, [kind for kind in IMPORTS if f"import-{kind}" in chosen])
    report("data", results if options.only is None else merge("data", results))


if __name__ == "__main__":
    main()
