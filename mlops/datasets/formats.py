"""Raw files as streams of untyped columns: one parser per format, chosen in one table; memory is bounded by a block.

Leaves to others: types, allowed values and subjects (typing_rows.py).
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from mlops.datasets.recipe import CsvFormat, ImagesFormat, Recipe
from mlops.datasets.sources import FetchedFile
from mlops.errors import DatasetError

BLOCK_BYTES = 8 << 20
BLOCK_ROWS = 65_536
IMAGES_PER_BLOCK = 256


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
    except (pa.ArrowException, OSError, ValueError, csv.Error) as error:
        raise DatasetError(
            f"{fetched.raw.path} cannot be read as {recipe.format.kind}: {error}",
            hint="fix the file or the `format` of the recipe",
        ) from error


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
    line = 1
    reader = pa.json.open_json(
        _open_input(fetched), read_options=pa.json.ReadOptions(block_size=BLOCK_BYTES, use_threads=False)
    )
    for batch in reader:
        yield RawBlock(pa.Table.from_batches([batch]), _file_name(fetched), line)
        line += batch.num_rows


def _read_parquet(fetched: FetchedFile, recipe: Recipe) -> Iterator[RawBlock]:
    line = 1
    with pq.ParquetFile(fetched.path) as file:
        for batch in file.iter_batches(batch_size=BLOCK_ROWS, use_threads=False):
            yield RawBlock(pa.Table.from_batches([batch]), _file_name(fetched), line)
            line += batch.num_rows


def _read_arrow(fetched: FetchedFile, recipe: Recipe) -> Iterator[RawBlock]:
    line = 1
    with pa.memory_map(str(fetched.path)) as source, pa.ipc.open_file(source) as file:
        for number in range(file.num_record_batches):
            batch = file.get_batch(number)
            yield RawBlock(pa.Table.from_batches([batch]), _file_name(fetched), line)
            line += batch.num_rows


def _read_images(fetched: FetchedFile, recipe: Recipe) -> Iterator[RawBlock]:
    """Images of a folder in the order of their names; raw columns `path`, `folder` and `image`."""
    from PIL import Image, UnidentifiedImageError  # only where images are read

    assert isinstance(recipe.format, ImagesFormat)
    channels, height, width = recipe.format.shape
    files = sorted(path for path in fetched.path.rglob("*") if path.is_file())
    for start in range(0, len(files), IMAGES_PER_BLOCK):
        chosen = files[start : start + IMAGES_PER_BLOCK]
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


def _file_name(fetched: FetchedFile) -> str:
    return fetched.raw.path.rpartition("/")[2]


def _open_input(fetched: FetchedFile) -> Any:
    compression = "gzip" if fetched.raw.path.endswith(".gz") else None
    return pa.input_stream(str(fetched.path), compression=compression)


def _first_fields(fetched: FetchedFile, layout: CsvFormat) -> list[str]:
    """Fields of the first line after the skipped ones."""
    is_packed = fetched.raw.path.endswith(".gz")
    with (
        gzip.open(fetched.path, "rt", encoding="utf-8") if is_packed else fetched.path.open(encoding="utf-8") as stream
    ):
        for _ in range(fetched.raw.skip_lines):
            stream.readline()
        fields = next(csv.reader([stream.readline()], delimiter=layout.delimiter, skipinitialspace=layout.trim), [])
    if not fields:
        raise DatasetError(f"{fetched.raw.path} is empty", hint="an empty file is never an empty dataset")
    return [field.strip() if layout.trim else field for field in fields]
