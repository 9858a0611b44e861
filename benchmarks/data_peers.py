"""The same rows through MosaicML streaming and litdata: started by bench_data.py in an environment of their own.

Run as `python data_peers.py PEER FORM PARQUET FOLDER BATCH_SIZE`. FORM is `rows`, one sample a row, as their manuals
show it, or `blocks`, one sample a whole batch of columns, the fastest that a table can be stored in them. Prints the
rows per second of a sequential epoch from the local disk, the best of three, in torch's DataLoader with two workers.
"""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
from torch.utils.data import DataLoader


def samples_of(file: str, *, form: str, batch_size: int):
    for batch in pq.ParquetFile(file).iter_batches(batch_size=batch_size):
        columns = {name: batch.column(name).to_numpy() for name in batch.schema.names if name != "subject"}
        if form == "blocks":
            yield columns
            continue
        for number in range(batch.num_rows):
            yield {name: values[number].item() for name, values in columns.items()}


def take_block(samples: list):
    return samples[0]


def open_streaming(samples, folder: str, form: str, batch_size: int) -> DataLoader:
    from streaming import MDSWriter, StreamingDataset

    first = next(samples())
    kinds = {name: "int64" if name == "y" else "float32" for name in first}
    if form == "blocks":
        kinds = {name: f"ndarray:{values.dtype}" for name, values in first.items()}
    with MDSWriter(out=folder, columns=kinds) as writer:
        for sample in samples():
            writer.write(sample)
    size, collate = (1, take_block) if form == "blocks" else (batch_size, None)
    data = StreamingDataset(local=folder, shuffle=False, batch_size=size)
    return DataLoader(data, size, num_workers=2, collate_fn=collate)


def open_litdata(samples, folder: str, form: str, batch_size: int) -> DataLoader:
    for name in ("DATA_OPTIMIZER_CACHE_FOLDER", "DATA_OPTIMIZER_DATA_CACHE_FOLDER"):
        os.environ[name] = f"{folder}-{name.lower()}"  # else it uses /tmp/data, and empties that first
    from litdata import StreamingDataLoader, StreamingDataset, optimize

    optimize(fn=partial(give, samples), inputs=[0], output_dir=folder, chunk_bytes="64MB", num_workers=1)
    size, collate = (1, take_block) if form == "blocks" else (batch_size, None)
    data = StreamingDataset(folder, shuffle=False)
    return StreamingDataLoader(data, batch_size=size, num_workers=2, collate_fn=collate)


def give(samples, _: int):
    yield from samples()


def main() -> None:
    peer, form, file, folder, batch_size = *sys.argv[1:5], int(sys.argv[5])
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    samples = partial(samples_of, file, form=form, batch_size=batch_size)
    loader = {"streaming": open_streaming, "litdata": open_litdata}[peer](samples, folder, form, batch_size)
    rates = []
    for _ in range(3):
        started = time.perf_counter()
        rows = sum(len(batch["y"]) for batch in loader)
        rates.append(rows / (time.perf_counter() - started))
    assert rows == pq.ParquetFile(file).metadata.num_rows
    print(json.dumps({"rows": rows, "rate": max(rates)}))


if __name__ == "__main__":
    main()
