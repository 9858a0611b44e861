"""Ratios, several classes, means, and attributes from a table of their own."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats
from statsmodels.stats.proportion import test_proportions_2indep as independent_ratio

from mlops.clock import SystemClock
from mlops.errors import ProjectError
from mlops.evaluation import gaps, planted, ratios
from mlops.evaluation.attributes_table import join_attributes, load_attributes
from mlops.evaluation.checks.mean_gaps import assess_mean_gap
from mlops.evaluation.gate import judge_hearing
from mlops.evaluation.policy import Policy
from mlops.evaluation.rows import MISSING
from mlops.evaluation.verdicts import CheckResult, Verdict
from mlops.specs import parse_spec


@pytest.mark.parametrize(
    ("x1", "n1", "x2", "n2", "ratio"), [(20, 100, 40, 120, 0.8), (3, 40, 9, 30, 0.5), (50, 90, 40, 80, 1.0)]
)
def test_the_ratio_statistic_is_that_of_statsmodels(x1: int, n1: int, x2: int, n2: int, ratio: float) -> None:
    ours = ratios.ratio_statistic(*(np.array([float(value)]) for value in (x1, n1, x2, n2)), ratio=ratio)[0]
    theirs = independent_ratio(x1, n1, x2, n2, value=ratio, compare="ratio", method="score", correction=False)
    assert ours == pytest.approx(theirs.statistic, rel=1e-6)


def tables_of(truth: list[float], n: int, rng: np.random.Generator) -> tuple[gaps.RateTable, ...]:
    names = tuple(str(index) for index in range(len(truth)))
    return (gaps.RateTable("rate", names, tuple(rng.binomial(n, truth).astype(float)), (float(n),) * len(truth)),)


def test_ratios_are_wrong_no_more_often_than_alpha(test_scale: int) -> None:
    rng, repeats = np.random.default_rng(1), 400 * test_scale

    def share(truth: list[float], side: str) -> float:
        found = [
            ratios.assess_ratio(tables_of(truth, 200, rng), minimum=0.8, alpha=0.05, minimum_denominator=5)
            for _ in range(repeats)
        ]
        return float(np.mean([getattr(item.evidence, side) <= 0.05 for item in found]))

    slack = 2.6 * np.sqrt(0.05 * 0.95 / repeats)
    assert share([0.4] * 5, "p_bad") <= 0.05 + slack
    assert share([0.4, 0.5], "p_bad") <= 0.05 + slack  # at the limit
    assert share([0.4, 0.5], "p_good") <= 0.05 + slack
    assert share([0.2, 0.5], "p_bad") > 0.95


def test_welch_is_that_of_scipy() -> None:
    rng = np.random.default_rng(2)
    cells = {"a": rng.normal(0, 1, 50), "b": rng.normal(0.4, 3, 90)}
    found, words = assess_mean_gap(cells, maximum=0.1, alpha=0.05)
    theirs = stats.ttest_ind(cells["b"] - 0.1, cells["a"], equal_var=False, alternative="greater").pvalue
    assert found.p_bad == pytest.approx(min(1.0, 2 * theirs))
    assert words.startswith("b")


def judge(check: str, *, score: planted.Score, table: pa.Table | None = None) -> CheckResult:
    text = f"  - {{name: it, owner: me, reason: a reason of a sentence, {check}}}"
    policy = parse_spec(f"version: 1\nproduct: p\nfavourable_class: granted\nchecks:\n{text}", Policy, source="p")
    hearing = planted.open_planted(planted.PLANTED[0], policy=policy, test_rows=3000, train_rows=500)
    model, test = planted.judged_of_score(score, name="it"), join_attributes(hearing.test, table)
    hearing = dataclasses.replace(hearing, load_model=lambda: model, load_test=lambda: test, _kept={}, _locks={})
    (result,) = judge_hearing(hearing, candidate="sha256:0", clock=SystemClock(), inputs={}).checks
    return result


RATIO = "kind: selection-rate-gap, by: [sex], maximum: 1, minimum_ratio: 0.8"
BOTH = "kind: equalized-odds-gap, by: [sex], maximum: 0.15, classes: [refused, granted]"
MEANS = "kind: mean-gap, by: [sex], maximum: 0.1"
CASES = {
    "an honest ratio": (RATIO, planted.honest, Verdict.PASS),
    "a proxy's ratio": (RATIO, planted.by_proxy, Verdict.FAIL),
    "both answers of an honest model": (BOTH, planted.honest, Verdict.PASS),
    "both answers of a proxy": (BOTH, planted.by_proxy, Verdict.FAIL),
    "an unknown answer": (BOTH.replace("refused", "perhaps"), planted.honest, Verdict.UNDECIDED),
    "honest mean scores": (MEANS, planted.honest, Verdict.PASS),
    "a proxy's mean scores": (MEANS, planted.by_proxy, Verdict.FAIL),
    "a proxy's errors": (f"{MEANS}, of: error", planted.by_proxy, Verdict.FAIL),
    "one group only": (MEANS.replace("sex", "nobody"), planted.honest, Verdict.UNDECIDED),
}


@pytest.mark.parametrize("case", CASES)
def test_verdict(case: str) -> None:
    check, score, expected = CASES[case]
    result = judge(check, score=score)
    assert result.verdict is expected, result.explanation


def test_an_attribute_of_a_table_of_its_own_is_joined_by_person(tmp_path: Path) -> None:
    rows = planted.make_rows(3000, seed=1)
    lines = [f"{subject.hex()},{sex}" for subject, sex in zip(rows.subjects, rows.groups["sex"], strict=True)]
    file = tmp_path / "attributes.csv"
    file.write_text("subject,gender\n" + "\n".join(lines[:-1]))
    joined = join_attributes(rows, load_attributes(file))
    assert joined.groups["gender"][:-1].tolist() == rows.groups["sex"][:-1].tolist()
    assert joined.groups["gender"][-1] == MISSING
    gender = RATIO.replace("sex", "gender")
    assert judge(gender, score=planted.by_proxy, table=load_attributes(file)).verdict is Verdict.FAIL
    assert (
        judge(gender, score=planted.by_proxy, table=load_attributes(tmp_path / "none.csv")).code == "attribute-missing"
    )


@pytest.mark.parametrize(
    ("text", "said"), [("a,b\n1,2", "no column"), ("subject,b\n1,2\n1,3", "twice"), ("", "cannot be read")]
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ProjectError, match=said):
        load_attributes(tmp_path / "t.csv")
