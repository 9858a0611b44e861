"""Peak memory of imports of more than a gigabyte, one format each, in a process of its own: used by bench_data.py.

Run as `python data_imports.py FORMAT FOLDER GIGABYTES`; prints the peak and what was imported. Everything lies in few
isolation groups, each larger than what may be held.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import yaml

COLUMNS, BLOCK, SIDE = 32, 50_000, 256
PEAK = """
import re, sys
from pathlib import Path
from mlops.datasets.importing import import_dataset
from mlops.places import Places
manifest = import_dataset(Places(Path(sys.argv[1])), "big").version.manifest
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1], manifest.rows)
"""


def make_blocks(rows: int):
    """Random numbers with a label and 1,000 people, `BLOCK` rows at a time."""
    chance = np.random.default_rng(1)
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        numbers = {f"x{n}": np.round(chance.random(count, dtype=np.float32), 4) for n in range(COLUMNS)}
        person = np.char.add("p", chance.integers(0, 1000, count).astype(str))
        yield pa.table({**numbers, "y": chance.integers(0, 2, count), "person": person})


def write_csv(path: Path, rows: int) -> None:
    blocks = make_blocks(rows)
    first = next(blocks)
    with pa.csv.CSVWriter(str(path), first.schema) as writer:
        writer.write_table(first)
        for block in blocks:
            writer.write_table(block)


def write_jsonl(path: Path, rows: int) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for block in make_blocks(rows):
            stream.writelines(json.dumps(row) + "\n" for row in block.to_pylist())


def write_parquet(path: Path, rows: int) -> None:
    """One row group, as some writers make them."""
    table = pa.concat_tables(make_blocks(rows))
    pq.write_table(table, path, row_group_size=rows)


def write_arrow(path: Path, rows: int) -> None:
    """One record batch."""
    table = pa.concat_tables(make_blocks(rows)).combine_chunks()
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def write_images(path: Path, rows: int) -> None:
    from PIL import Image

    for number in range(rows):
        file = path / str(number % 2) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((SIDE, SIDE, 3), number % 256, dtype=np.uint8)).save(file)


WRITERS = {
    "csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet, "arrow": write_arrow, "images": write_images,
}  # fmt: skip


def write_recipe(root: Path, kind: str, *, groups: int) -> str:
    """The recipe; returns the raw file's path."""
    path = f"datasets/raw.{kind}" if kind != "images" else "datasets/raw"
    numbers = [{"name": f"x{n}", "kind": "number", "roles": ["feature"]} for n in range(COLUMNS)]
    subject, form = {"column": "person"}, {"kind": kind}
    label = {"name": "y", "kind": "category", "roles": ["label"], "categories": ["0", "1"]}
    if kind == "images":
        shape = [3, SIDE, SIDE]
        numbers = [{"name": "image", "kind": "tensor", "roles": ["feature"], "shape": shape, "divide_by": 255}]
        subject, form, label = {"column": "path"}, {"kind": kind, "shape": shape}, label | {"from": "folder"}
    recipe = dict.fromkeys(("title", "credit", "licence", "lawful_basis"), "benchmark") | {
        "version": 1, "subject_key": {"public": "benchmark"}, "groups": groups, "splits": {"train": [0, groups]},
        "source": {"kind": "files", "files": [{"path": path}]}, "format": form, "subject": subject,
        "columns": [*numbers, label],
    }  # fmt: skip
    (root / "datasets").mkdir(parents=True)
    (root / "datasets" / "big.yaml").write_text(yaml.safe_dump(recipe))
    (root / "datasets.dvc").write_text("outs: []\n")
    return path


def main() -> None:
    kind, root, gigabytes = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    raw = root / write_recipe(root, kind, groups=2)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    row_bytes = 12 * SIDE * SIDE if kind == "images" else 4 * COLUMNS + 8 + 32
    WRITERS[kind](raw, round(gigabytes * 1e9 / row_bytes))
    done = subprocess.run([sys.executable, "-c", PEAK, str(root)], capture_output=True, text=True, check=False)
    found = re.fullmatch(r"(\d+) (\d+)\n", done.stdout)
    assert found, done.stderr
    print(json.dumps({"peak_mb": int(found[1]) / 1024, "rows": int(found[2]), "decoded_gb": gigabytes}))


if __name__ == "__main__":
    main()
