"""Checkpoints come back bit by bit, and damage is never loaded."""

import pytest
import torch

from mlops.errors import TrainingError
from mlops.training.checkpoints import list_checkpoints, load_checkpoint, load_newest, save_checkpoint


def make_state():
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "more": {"t": (1, 2.5, None, "x", True)}}


def assert_same(first, second):
    assert type(first) is type(second) or (isinstance(first, dict) and isinstance(second, dict))
    if isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
        assert first.dtype == second.dtype
    else:
        assert first == second


def test_modules_and_optimizers_come_back_bit_by_bit(tmp_path):
    state = make_state()
    assert_same(load_checkpoint(save_checkpoint(tmp_path, epoch=3, state=state)), state)


def test_only_the_last_ones_are_kept(tmp_path):
    for epoch in range(1, 6):
        save_checkpoint(tmp_path, epoch=epoch, state={"model": {"w": torch.ones(1)}}, keep=2)
    assert [checkpoint.epoch for checkpoint in list_checkpoints(tmp_path)] == [4, 5]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, name):
    save_checkpoint(tmp_path, epoch=1, state={"model": {"w": torch.ones(2)}})
    damaged = save_checkpoint(tmp_path, epoch=2, state={"model": {"w": torch.zeros(2)}})
    path = damaged.folder / name
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(TrainingError):
        load_checkpoint(damaged)
    epoch, state = load_newest(tmp_path)
    assert epoch == 1
    assert torch.equal(state["model"]["w"], torch.ones(2))


def test_what_is_half_written_is_no_checkpoint(tmp_path):
    (tmp_path / "epoch-000004").mkdir()
    (tmp_path / ".epoch-000005.aside").mkdir()
    assert list_checkpoints(tmp_path) == []
    assert load_newest(tmp_path) is None


def test_an_object_that_is_no_state_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="cannot hold a object"):
        save_checkpoint(tmp_path, epoch=1, state={"model": object()})
    assert list(tmp_path.iterdir()) == []
