import pytest
import torch

from mlops.datasets.reader import ShardReader
from mlops.datasets.version import read_split
from mlops.errors import DatasetError

RUN = {"batch_size": 16, "seed": 3, "epoch": 1}


def read(version, folder, *, split="train", rank=0, world_size=1, window_rows=64, **options):
    reader = ShardReader(version, folder, window_rows=window_rows)
    return list(reader.batches(split, rank=rank, world_size=world_size, **{**RUN, **options}))


def test_every_row_comes_once_with_its_own_values(version, tmp_path):
    batches = read(version, tmp_path / "cache")
    table = read_split(version, "train")
    rows = torch.cat([batch.rows for batch in batches])
    assert sorted(rows.tolist()) == list(range(table.num_rows))
    assert torch.cat([batch.positions for batch in batches]).tolist() == list(range(table.num_rows))
    for name in ("age", "plan"):
        expected = torch.tensor(table.column(name).to_numpy())[rows]
        assert torch.equal(torch.cat([batch.features[name] for batch in batches]), expected)
    assert torch.equal(
        torch.cat([batch.label for batch in batches]), torch.tensor(table.column("left").to_numpy())[rows]
    )
    assert batches[0].sensitive["region"].dtype == torch.int64
    assert batches[0].features["age"].dtype == torch.float32
    assert batches[0].weight is None


def test_ranks_together_see_each_global_batch_and_none_starves(version, tmp_path):
    whole = read(version, tmp_path / "cache")
    for world_size in (2, 4, 8, 16):
        parts = [read(version, tmp_path / "cache", rank=rank, world_size=world_size) for rank in range(world_size)]
        assert {len(part) for part in parts} == {len(whole)}
        for step, batch in enumerate(whole):
            together = torch.cat([part[step].positions for part in parts]).sort()
            rows = torch.cat([part[step].rows for part in parts])[together.indices]
            assert torch.equal(rows, batch.rows)
            assert min(len(part[step].rows) for part in parts) >= 1


def test_resuming_gives_the_rest(version, tmp_path):
    whole = read(version, tmp_path / "cache")
    for step in range(len(whole) + 1):
        rest = read(version, tmp_path / "cache", start_step=step)
        assert [batch.rows.tolist() for batch in rest] == [batch.rows.tolist() for batch in whole[step:]]


def test_the_order_does_not_depend_on_the_window_held_before(version, tmp_path):
    reader = ShardReader(version, tmp_path / "cache", window_rows=64)
    list(reader.batches("test", rank=0, world_size=1, **RUN))
    again = list(reader.batches("train", rank=0, world_size=1, **RUN))
    fresh = read(version, tmp_path / "cache")
    assert [batch.rows.tolist() for batch in again] == [batch.rows.tolist() for batch in fresh]


@pytest.mark.parametrize("window_rows", [64, 4096])
def test_later_passes_over_both_splits_give_what_the_first_gave(version, tmp_path, window_rows):
    """Batches are made ahead in the first pass and as asked for in later ones, from rows that are held since then."""
    reader = ShardReader(version, tmp_path / "cache", window_rows=window_rows)
    passes = [
        [batch.rows.tolist() for batch in reader.batches(split, rank=0, world_size=1, **RUN)]
        for split in ("train", "validation") * 3
    ]
    assert passes[0] == passes[2] == passes[4]
    assert passes[1] == passes[3] == passes[5]
    assert reader.take_wait_seconds() > 0


def test_once_cached_a_shard_is_not_read_from_the_store(version, tmp_path, moved):
    first = read(version, tmp_path / "cache")
    second = read(moved(version, tmp_path / "nowhere"), tmp_path / "cache")
    assert torch.equal(first[0].rows, second[0].rows)


def test_ignored_columns_and_subjects_never_reach_the_cache(people, tmp_path, stored):
    people.recipe["columns"].append({"name": "note", "from": "age", "kind": "number", "roles": ["ignored"]})
    version = stored(people.write().build(tmp_path / "b"), tmp_path / "objects")
    read(version, tmp_path / "cache")
    for path in (tmp_path / "cache").rglob("*.arrow"):
        assert b"note" not in path.read_bytes() and b"subject" not in path.read_bytes()


def test_a_world_size_that_does_not_divide_the_batch_is_refused_at_once(version, tmp_path):
    with pytest.raises(DatasetError, match="cannot be shared equally"):
        ShardReader(version, tmp_path).batches("train", rank=0, world_size=3, **RUN)


def test_a_tensor_column_keeps_its_shape(people, tmp_path, stored):
    people.rows = [{**row, **{f"p{i}": str(i) for i in range(4)}} for row in people.rows]
    people.recipe["columns"][0] = {
        "name": "image", "kind": "tensor", "roles": ["feature"], "shape": [1, 2, 2], "from_range": [5, 9]
    }  # fmt: skip
    version = stored(people.write().build(tmp_path / "b"), tmp_path / "objects")
    batch = read(version, tmp_path / "cache")[0]
    assert batch.features["image"].shape == (16, 1, 2, 2)
    assert torch.equal(batch.features["image"][0], torch.tensor([[[0.0, 1.0], [2.0, 3.0]]]))


def test_stratified_batches_hold_the_share_of_each_label(version, tmp_path):
    batches = read(version, tmp_path / "cache", order="stratified", window_rows=1000)
    rows = torch.cat([batch.rows for batch in batches])
    assert sorted(rows.tolist()) == list(range(len(rows)))
    share = torch.cat([batch.label for batch in batches]).float().mean()
    assert all(abs(batch.label.float().mean() - share) < 0.1 for batch in batches)


def test_weighted_batches_need_a_weight_column(version, tmp_path):
    with pytest.raises(DatasetError, match="order 'weighted'"):
        read(version, tmp_path / "cache", order="weighted")


def test_weighted_batches_never_draw_a_weightless_row(people, tmp_path, stored):
    for number, row in enumerate(people.rows):
        row["importance"] = str(number % 3)
    people.recipe["columns"].append({"name": "importance", "kind": "number", "roles": ["weight"], "minimum": 0})
    version = stored(people.write().build(tmp_path / "b"), tmp_path / "objects")
    batches = read(version, tmp_path / "cache", order="weighted", window_rows=1000)
    weights = torch.cat([batch.weight for batch in batches])
    assert (weights > 0).all()
    assert (weights == 2).sum() > (weights == 1).sum() * 1.5


def test_a_cache_with_a_limit_stays_below_it_and_reads_the_same(version, tmp_path):
    whole = read(version, tmp_path / "cache")
    sizes = [path.stat().st_size for path in (tmp_path / "cache").rglob("*.arrow")]
    limit = max(sizes) * 2
    reader = ShardReader(version, tmp_path / "small", window_rows=32, cache_bytes=limit)
    same = ShardReader(version, tmp_path / "cache", window_rows=32)
    options = {**RUN, "rank": 0, "world_size": 1}
    for batch, expected in zip(reader.batches("train", **options), same.batches("train", **options), strict=True):
        assert torch.equal(batch.rows, expected.rows)
        assert sum(path.stat().st_size for path in (tmp_path / "small").rglob("*.arrow")) <= limit
    assert len(whole) > 3


def test_waiting_is_counted_and_asked_once(version, tmp_path):
    reader = ShardReader(version, tmp_path / "cache")
    list(reader.batches("train", rank=0, world_size=1, **RUN))
    assert reader.take_wait_seconds() > 0
    assert reader.take_wait_seconds() == 0


def test_weights_that_are_all_zero_are_refused(people, tmp_path, stored):
    people.rows = [{**row, "importance": "0"} for row in people.rows]
    people.recipe["columns"].append({"name": "importance", "kind": "number", "roles": ["weight"]})
    version = stored(people.write().build(tmp_path / "b"), tmp_path / "objects")
    with pytest.raises(DatasetError, match="all zero"):
        read(version, tmp_path / "cache", order="weighted")


def test_columns_are_pinned_for_a_device_and_only_then(version, tmp_path):
    """The fake marks what would be page-locked: each column once, never positions or row numbers."""
    pinned = []

    def pin(tensor):
        pinned.append(tensor.clone())
        return pinned[-1]

    reader = ShardReader(version, tmp_path / "cache", pin_tensor=pin)
    run = {"batch_size": 50, "seed": 1, "epoch": 0, "rank": 0, "world_size": 1}
    plain = list(reader.batches("train", **run))
    assert pinned == []
    batches = list(reader.batches("train", **run, pin=True))
    columns = [column for it in batches for column in (*it.features.values(), it.label, *it.sensitive.values())]
    assert {id(column) for column in columns} == {id(column) for column in pinned}
    assert all(torch.equal(one.label, other.label) for one, other in zip(plain, batches, strict=True))


@pytest.mark.gpu
def test_a_cuda_device_copies_from_page_locked_memory(version, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    reader = ShardReader(version, tmp_path / "cache")
    run = {"batch_size": 50, "seed": 1, "epoch": 0, "rank": 0, "world_size": 1}
    batch = next(iter(reader.batches("train", **run, pin=True)))
    assert batch.label.is_pinned()
    assert all(column.is_pinned() for column in batch.features.values())


@pytest.mark.parametrize("shuffle", [True, False])
def test_what_a_trainer_writes_into_a_batch_is_not_in_the_next_epoch(version, tmp_path, shuffle):
    def read_on(reader):
        batches = reader.batches("train", batch_size=16, seed=1, epoch=0, rank=0, world_size=1, shuffle=shuffle)
        for batch in batches:
            yield [column.clone() for column in (*batch.features.values(), batch.label)]
            for column in (*batch.features.values(), batch.label):
                column.fill_(0)

    reader = ShardReader(version, tmp_path / "cache")
    first, second = list(read_on(reader)), list(read_on(reader))
    assert all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )
    assert any(column.any() for column in first[0])
