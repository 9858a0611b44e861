"""The same rows from every format give the same shards."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mlops.datasets.formats import BLOCK_BYTES, count_block_rows, read_blocks
from mlops.datasets.recipe import RawFile
from mlops.datasets.sources import FetchedFile
from mlops.datasets.version import read_split
from mlops.errors import DatasetError


def typed(rows):
    return [{**row, "age": int(row["age"])} for row in rows]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=40)


def write_arrow(path, rows):
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=33)


WRITERS = {"jsonl": write_jsonl, "parquet": write_parquet, "arrow": write_arrow}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_format_gives_the_shards_that_csv_gives(kind, people, build, tmp_path):
    WRITERS[kind](people.places.root / "datasets" / f"people.{kind}", typed(people.rows))
    people.recipe["format"] = {"kind": kind}
    people.recipe["source"]["files"] = [{"path": f"datasets/people.{kind}"}]
    assert people.write().build(tmp_path / kind).manifest.shards == build.manifest.shards


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_of_another_format_is_said(kind, people, tmp_path):
    people.recipe["format"] = {"kind": kind}
    with pytest.raises(DatasetError, match=f"cannot be read as {kind}"):
        people.write().build(tmp_path / kind)


def test_json_lines_may_mix_types_and_keys(people, build, tmp_path):
    """What a parser that guesses types from the first block stumbles over."""
    for number, row in enumerate(people.rows):
        row["age"] = (int(row["age"]), float(row["age"]), row["age"])[number % 3]
        if row["plan"] == "":
            row["plan"] = None
            if number % 2:
                del row["plan"]
        row |= {"new": [1]} if number > 200 else {}
    path = people.places.root / "datasets" / "people.jsonl"
    path.write_text("".join(json.dumps(row) + "\n\n" for row in people.rows))
    people.recipe["format"] = {"kind": "jsonl"}
    people.recipe["source"]["files"] = [{"path": "datasets/people.jsonl"}]
    (people.places.root / "datasets" / "people.yaml").write_text(json.dumps(people.recipe))
    assert people.build(tmp_path / "mixed").manifest.shards == build.manifest.shards


@pytest.mark.parametrize(("line", "said"), [("[1]", "line 301 is no JSON object"), ('{"a": ', "line 301: ")])
def test_a_line_that_is_no_object_is_named(line, said, people, tmp_path):
    path = people.places.root / "datasets" / "people.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in people.rows) + line + "\n")
    people.recipe["format"] = {"kind": "jsonl"}
    people.recipe["source"]["files"] = [{"path": "datasets/people.jsonl"}]
    with pytest.raises(DatasetError, match=said):
        people.write().build(tmp_path / "broken")


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_file_in_one_piece_is_read_in_small_blocks(kind, people):
    rows = 40_000
    table = pa.table({f"x{number}": np.arange(rows, dtype=np.float64) + number for number in range(100)})
    path = people.places.root / f"wide.{kind}"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=rows, use_dictionary=False, compression="none")
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    people.recipe["format"] = {"kind": kind}
    blocks = list(read_blocks(FetchedFile(RawFile(path=path.name), path, ""), people.write().load_recipe()))
    assert max(block.table.nbytes for block in blocks) < 1.1 * BLOCK_BYTES
    assert pa.concat_tables([block.table for block in blocks]) == table
    assert blocks[1].first_line == blocks[0].table.num_rows + 1


def test_large_images_come_a_few_at_a_time():
    assert count_block_rows(4 * 3 * 1024 * 1024) == 1
    assert count_block_rows(4 * 28 * 28) == 2_674


def test_several_files_make_one_dataset(people, build, tmp_path):
    lines = (people.places.root / "datasets" / "people.csv").read_text().splitlines(keepends=True)
    (people.places.root / "datasets" / "a.csv").write_text("".join(lines[:100]))
    (people.places.root / "datasets" / "b.csv").write_text("# comment\n" + lines[0] + "".join(lines[100:]))
    people.recipe["source"]["files"] = [{"path": "datasets/a.csv"}, {"path": "datasets/b.csv", "skip_lines": 1}]
    assert people.write().build(tmp_path / "two").manifest.shards == build.manifest.shards


def test_a_ragged_line_is_said(people, tmp_path):
    path = people.places.root / "datasets" / "people.csv"
    path.write_text(path.read_text() + "only,three,fields\n")
    with pytest.raises(DatasetError, match="cannot be read as csv"):
        people.build(tmp_path / "ragged")


@pytest.fixture
def pictures(people):
    folder = people.places.root / "datasets" / "pictures"
    for number in range(12):
        path = folder / ("no" if number % 2 else "yes") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6), number * 20, dtype=np.uint8)).save(path)
    people.recipe["format"] = {"kind": "images", "shape": [1, 2, 3]}
    people.recipe["source"]["files"] = [{"path": "datasets/pictures"}]
    people.recipe["subject"] = {"column": "path"}
    people.recipe["columns"] = [
        {"name": "image", "kind": "tensor", "roles": ["feature"], "shape": [1, 2, 3], "divide_by": 255, "maximum": 1},
        {"name": "left", "from": "folder", "kind": "category", "roles": ["label"], "categories": ["no", "yes"]},
    ]
    return people.write()


def test_a_folder_of_images_takes_labels_from_its_folders(pictures, stored, tmp_path):
    version = stored(pictures.build(tmp_path / "b"), tmp_path / "objects")
    rows = [row for split in version.manifest.splits for row in read_split(version, split).to_pylist()]
    assert len(rows) == 12
    for row in rows:
        assert len(set(row["image"])) == 1
        assert row["left"] == (round(row["image"][0] * 255) // 20 % 2 == 0)


def test_an_image_that_does_not_decode_is_named(pictures, tmp_path):
    (pictures.places.root / "datasets" / "pictures" / "yes" / "2.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"2\.png is no image"):
        pictures.build(tmp_path / "b")


def test_a_feature_that_gives_the_label_away_is_reported(people, build, tmp_path):
    assert build.leaks == ()
    for row in people.rows:
        row["answer"] = row["left"]
        row["score"] = "90" if row["left"] == "yes" else "10"
    people.recipe["columns"] += [
        {"name": "answer", "kind": "category", "roles": ["feature"], "categories": ["no", "yes"]},
        {"name": "score", "kind": "number", "roles": ["feature"]},
        {"name": "kept", "from": "score", "kind": "number", "roles": ["ignored"]},
    ]
    leaks = people.write().build(tmp_path / "leaky").leaks
    assert [line.split()[0] for line in leaks] == ["answer", "score"]


def test_a_file_from_a_spreadsheet_may_begin_with_a_mark(people, build, tmp_path):
    path = people.write().places.root / "datasets" / "people.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert people.build(tmp_path / "marked").manifest.shards == build.manifest.shards


def test_a_row_that_is_cut_off_is_named_without_the_person(people, tmp_path):
    path = people.write().places.root / "datasets" / "people.csv"
    path.write_text(path.read_text() + "somebody-known\n")
    with pytest.raises(DatasetError, match=r"columns, got 1$") as caught:
        people.build(tmp_path / "cut")
    assert "somebody-known" not in caught.value.message


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_list_where_the_recipe_wants_a_number_is_said(kind, people, tmp_path):
    rows = [{**row, "age": [int(row["age"])]} for row in people.rows]
    WRITERS[kind](people.places.root / "datasets" / f"people.{kind}", rows)
    people.recipe["format"] = {"kind": kind}
    people.recipe["source"]["files"] = [{"path": f"datasets/people.{kind}"}]
    with pytest.raises(DatasetError, match="column 'age' holds list"):
        people.write().build(tmp_path / kind)
