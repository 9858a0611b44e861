import pytest
import torch

from mlops.datasets.reader import ShardReader
from mlops.datasets.selection import AuditPool, Selection, is_audited, takes_part
from mlops.datasets.subjects import group_of
from mlops.datasets.version import read_split
from mlops.errors import DatasetError

RUN = {"batch_size": 8, "seed": 1, "epoch": 0, "rank": 0, "world_size": 1}


def rows_read(version, folder, selection):
    reader = ShardReader(version, folder, window_rows=32, selection=selection)
    rows = torch.cat([batch.rows for batch in reader.batches("train", **RUN)]).tolist()
    assert reader.count_rows("train") == len(rows) == len(set(rows))
    return set(rows)


def subjects_of(version):
    return read_split(version, "train", columns=["subject"]).column("subject").to_pylist()


def test_groups_of_a_member(version, tmp_path):
    expected = {n for n, s in enumerate(subjects_of(version)) if group_of(s, groups=8) in (1, 3)}
    assert rows_read(version, tmp_path, Selection(groups=frozenset({1, 3}))) == expected


def test_excluded_people_are_not_read_and_others_keep_their_values(version, tmp_path):
    subjects = subjects_of(version)
    excluded = frozenset(subjects[:20])
    selection = Selection(excluded=excluded)
    assert rows_read(version, tmp_path, selection) == {n for n, s in enumerate(subjects) if s not in excluded}
    ages = torch.tensor(read_split(version, "train").column("age").to_numpy())
    for batch in ShardReader(version, tmp_path, window_rows=32, selection=selection).batches("train", **RUN):
        assert torch.equal(batch.features["age"], ages[batch.rows])


def test_half_of_the_audit_pool_takes_part_and_everyone_else_does():
    people = [bytes([a, b] * 16) for a in range(60) for b in range(60)]
    audit = AuditPool(share=0.25, pool_seed=1, trial_seed=2)
    pool = [one for one in people if is_audited(audit, one)]
    inside = [one for one in pool if takes_part(Selection(audit=audit), one)]
    assert 0.2 < len(pool) / len(people) < 0.3
    assert 0.4 < len(inside) / len(pool) < 0.6
    assert all(takes_part(Selection(audit=audit), one) for one in people if one not in pool)
    other = AuditPool(share=0.25, pool_seed=1, trial_seed=3)
    assert [one for one in people if is_audited(other, one)] == pool
    assert [one for one in pool if takes_part(Selection(audit=other), one)] != inside


def test_another_selection_is_another_order(version, tmp_path):
    assert Selection().digest != Selection(groups=frozenset({1})).digest
    assert Selection(groups=frozenset({1, 2})).digest == Selection(groups=frozenset({2, 1})).digest


def test_a_share_beyond_one_is_refused():
    with pytest.raises(DatasetError, match="not between 0 and 1"):
        is_audited(AuditPool(share=1.5, pool_seed=1, trial_seed=2), b"x")
