"""Our own attacks: inside the box, deterministic under a seed, and at least as strong as the plain ones."""

import pytest
import torch

from mlops.evaluation import torch_attacks as attacks


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    features = torch.randn(400, 10)
    labels = (features[:, :3].sum(1) > 0).long() + 2 * (features[:, 3] * features[:, 4] > 0).long()
    net = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(features), labels).backward()
        optimizer.step()
    return net


def boxed(count: int = 80) -> tuple[attacks.Box, torch.Tensor]:
    features = torch.randn(count, 10, generator=torch.Generator().manual_seed(5))
    labels = (features[:, :3].sum(1) > 0).long() + 2 * (features[:, 3] * features[:, 4] > 0).long()
    radius = torch.full((10,), 0.3)
    radius[9] = 0.0
    return attacks.box_around(features, radius=radius, low=torch.full((10,), -2.0), high=torch.full((10,), 2.0)), labels


def run(name: str, net: torch.nn.Module) -> torch.Tensor:
    box, labels = boxed()
    generator = torch.Generator().manual_seed(1)
    if name == "pgd":
        return attacks.attack_pgd(net, box, labels, steps=20, restarts=2, generator=generator)
    if name == "search":
        return attacks.attack_by_search(net, box, labels, queries=200, generator=generator)
    loss = attacks.cross_entropy if name == "apgd-ce" else attacks.targeted_ratio
    targets = 0 if name == "apgd-ce" else 3
    return attacks.attack_apgd(net, box, labels, steps=40, restarts=0, generator=generator, loss=loss, targets=targets)


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "apgd-dlr", "search"])
def test_attacks_stay_in_the_box_repeat_under_a_seed_and_break_rows(name: str, network: torch.nn.Module) -> None:
    box, labels = boxed()
    found = run(name, network)
    assert (found >= box.low - 1e-6).all()
    assert (found <= box.high + 1e-6).all()
    assert (found[:, 9] == box.start[:, 9]).all()
    assert torch.equal(found, run(name, network))
    clean = (network(box.start).argmax(1) == labels).float().mean()
    robust = (network(found).argmax(1) == labels).float().mean()
    assert robust < clean - 0.1


def test_the_targeted_attack_is_no_weaker_than_one_step(network: torch.nn.Module) -> None:
    box, labels = boxed()
    start = box.start.clone().requires_grad_(True)
    torch.nn.functional.cross_entropy(network(start), labels, reduction="sum").backward()
    assert start.grad is not None
    one_step = box.clip(box.start + box.radius * start.grad.sign())
    weak = (network(one_step).argmax(1) == labels).sum()
    assert (network(run("apgd-dlr", network)).argmax(1) == labels).sum() <= weak


def test_a_row_outside_the_limits_may_stay_where_it_is() -> None:
    start = torch.tensor([[5.0]])
    box = attacks.box_around(start, radius=torch.tensor([1.0]), low=torch.tensor([0.0]), high=torch.tensor([3.0]))
    assert box.clip(start).item() == 5.0
