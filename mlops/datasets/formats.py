"""Raw files as streams of untyped columns: one parser per format, chosen in one table; memory is bounded by a block.

Leaves to others: types, allowed values and subjects (typing_rows.py).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import mmap
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from mlops.datasets.recipe import CsvFormat, ImagesFormat, Recipe
from mlops.datasets.sources import FetchedFile
from mlops.errors import DatasetError

BLOCK_BYTES = 8 << 20
BLOCK_ROWS = 65_536
PARQUET_BUFFER_BYTES = 64 << 10
"""For each column; without a buffer the whole column of a row group is read at once."""


@dataclass(frozen=True)
class RawBlock:
    """Some consecutive rows of a raw file."""

    table: pa.Table
    file_name: str
    """Last part of the raw file's name."""
    first_line: int
    """Line of the first row, counting from 1 and counting skipped lines and the header; blank lines are not rows."""


Parser = Callable[[FetchedFile, Recipe], Iterator[RawBlock]]


def read_blocks(fetched: FetchedFile, recipe: Recipe) -> Iterator[RawBlock]:
    """The rows of one raw file, in its order.

    Raises:
        DatasetError: The file is not of the format the recipe says.
    """
    try:
        yield from PARSERS[recipe.format.kind](fetched, recipe)
    except (pa.ArrowException, OSError, ValueError, TypeError, csv.Error) as error:
        raise DatasetError(
            f"{fetched.raw.path} cannot be read as {recipe.format.kind}: {_without_row(str(error))}",
            hint="fix the file or the `format` of the recipe",
        ) from error


def _without_row(problem: str) -> str:
    """pyarrow quotes the whole row, the person's id with it."""
    return re.sub(r"(Expected \d+ columns, got \d+):.*", r"\1", problem, flags=re.DOTALL)


def _read_csv(fetched: FetchedFile, recipe: Recipe) -> Iterator[RawBlock]:
    assert isinstance(recipe.format, CsvFormat)
    layout = recipe.format
    skipped = fetched.raw.skip_lines
    names = list(layout.names) if layout.names else _first_fields(fetched, layout)
    if layout.header:
        skipped += 1
    elif not layout.names:
        names = [str(position) for position in range(len(names))]
    stream = pa.csv.open_csv(
        _open_input(fetched),
        read_options=pa.csv.ReadOptions(
            column_names=names, skip_rows=skipped, block_size=BLOCK_BYTES, use_threads=False, encoding="utf8"
        ),
        parse_options=pa.csv.ParseOptions(delimiter=layout.delimiter, newlines_in_values=False),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False, check_utf8=True
        ),
    )
    line = skipped + 1
    for batch in stream:
        yield RawBlock(pa.Table.from_batches([batch]), _file_name(fetched), line)
        line += batch.num_rows


def _read_jsonl(fetched: FetchedFile, recipe: Recipe) -> Iterator[RawBlock]:
    """Numbers keep their spelling; nothing is guessed from the first lines, so a column may be mixed."""
    first, size, rows = 1, 0, []
    with _open_input(fetched) as source:
        for number, line in enumerate(io.TextIOWrapper(source, encoding="utf-8-sig"), start=1):
            try:
                row = json.loads(line, parse_float=str, parse_int=str, parse_constant=str) if line.strip() else None
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error}") from error
            if row is None:
                continue
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no JSON object")
            rows.append(row)
            size += len(line)
            if size >= BLOCK_BYTES:
                yield RawBlock(_table_of_objects(rows), _file_name(fetched), first)
                first, size, rows = first + len(rows), 0, []
    if rows:
        yield RawBlock(_table_of_objects(rows), _file_name(fetched), first)


def _table_of_objects(rows: list[dict[str, Any]]) -> pa.Table:
    """Lists as float64, everything else as text; a value that is missing is null."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        if any(isinstance(value, list) for value in values):
            columns[name] = pa.array([None if it is None else [float(x) for x in it] for it in values])
        else:
            columns[name] = pa.array([_text_of(value) for value in values], pa.string())
    return pa.table(columns)


def _text_of(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else json.dumps(value)


def _read_parquet(fetched: FetchedFile, recipe: Recipe) -> Iterator[RawBlock]:
    line = 1
    with pq.ParquetFile(fetched.path, buffer_size=PARQUET_BUFFER_BYTES, pre_buffer=False) as file:
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        size = sum(group.total_byte_size for group in groups)
        rows = count_block_rows(size // max(1, file.metadata.num_rows))
        for batch in file.iter_batches(batch_size=rows, use_threads=False):
            yield RawBlock(pa.Table.from_batches([batch]), _file_name(fetched), line)
            line += batch.num_rows


def _read_arrow(fetched: FetchedFile, recipe: Recipe) -> Iterator[RawBlock]:
    line = 1
    with fetched.path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    with pa.ipc.open_file(pa.py_buffer(mapped)) as file:
        for number in range(file.num_record_batches):
            batch = file.get_batch(number)
            rows = count_block_rows(batch.nbytes // max(1, batch.num_rows))
            for start in range(0, batch.num_rows, rows):
                block = pa.Table.from_batches([batch.slice(start, rows)])
                yield RawBlock(block, _file_name(fetched), line)
                line += block.num_rows
                mapped.madvise(mmap.MADV_DONTNEED)  # else the whole file stays in this process's memory


def _read_images(fetched: FetchedFile, recipe: Recipe) -> Iterator[RawBlock]:
    """Images of a folder in the order of their names; raw columns `path`, `folder` and `image`."""
    from PIL import Image, UnidentifiedImageError  # only where images are read

    assert isinstance(recipe.format, ImagesFormat)
    channels, height, width = recipe.format.shape
    files = sorted(path for path in fetched.path.rglob("*") if path.is_file())
    step = count_block_rows(4 * channels * height * width)
    for start in range(0, len(files), step):
        chosen = files[start : start + step]
        pixels = np.empty((len(chosen), channels, height, width), dtype=np.float32)
        for number, path in enumerate(chosen):
            try:
                with Image.open(path) as image:
                    resized = image.convert("L" if channels == 1 else "RGB").resize((width, height))
            except (UnidentifiedImageError, OSError) as error:
                raise DatasetError(
                    f"{path} is no image that can be decoded: {error}", hint="mend or remove it"
                ) from error
            pixels[number] = np.asarray(resized, dtype=np.float32).reshape(height, width, channels).transpose(2, 0, 1)
        names = [path.relative_to(fetched.path).as_posix() for path in chosen]
        table = pa.table(
            {
                "path": names,
                "folder": [name.rpartition("/")[0].rpartition("/")[2] for name in names],
                "image": pa.FixedSizeListArray.from_arrays(pixels.reshape(-1), channels * height * width),
            }
        )
        yield RawBlock(table, _file_name(fetched), start + 1)


PARSERS: dict[str, Parser] = {
    "images": _read_images,
    "csv": _read_csv,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
}


def count_block_rows(row_bytes: int) -> int:
    """Rows of a block, by the size of one."""
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(1, row_bytes)))


def _file_name(fetched: FetchedFile) -> str:
    return fetched.raw.path.rpartition("/")[2]


def _open_input(fetched: FetchedFile) -> Any:
    compression = "gzip" if fetched.raw.path.endswith(".gz") else None
    return pa.input_stream(str(fetched.path), compression=compression)


def _first_fields(fetched: FetchedFile, layout: CsvFormat) -> list[str]:
    """Fields of the first line after the skipped ones."""
    is_packed = fetched.raw.path.endswith(".gz")
    with (
        gzip.open(fetched.path, "rt", encoding="utf-8-sig")
        if is_packed
        else fetched.path.open(encoding="utf-8-sig") as stream  # Excel begins a file with the mark
    ):
        for _ in range(fetched.raw.skip_lines):
            stream.readline()
        fields = next(csv.reader([stream.readline()], delimiter=layout.delimiter, skipinitialspace=layout.trim), [])
    if not fields:
        raise DatasetError(f"{fetched.raw.path} is empty", hint="an empty file is never an empty dataset")
    return [field.strip() if layout.trim else field for field in fields]
