"""The gate policy `evaluation/<product>.yaml`: checks with thresholds, written reasons and owners.

Leaves to others: measuring (checks/), deciding (decisions.py), and project checks' own code (evaluation/checks/).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from mlops.errors import ProjectError
from mlops.evaluation.behaviour_rules import (
    ArbitrarinessRule,
    AttributionRule,
    DirectionRule,
    FunctionalityRule,
    InvarianceRule,
    MonotoneRule,
)
from mlops.evaluation.fairness_rules import MeanGapRule
from mlops.evaluation.privacy_rules import PrivacyRule
from mlops.evaluation.rule import Name, Rate, Rule, Sentence, SlicedRule
from mlops.evaluation.screen_rules import ScreenRule
from mlops.evaluation.surface_rules import Change, Constraint
from mlops.provenance.digest import digest_json
from mlops.specs import Spec, load_spec
from mlops.units import Accelerators, Duration


class LossRule(SlicedRule):
    """Mean log loss at most `maximum`."""

    kind: Literal["loss"]
    maximum: float = Field(gt=0)


class AccuracyRule(SlicedRule):
    """Share of right answers at least `minimum`."""

    kind: Literal["accuracy"]
    minimum: Rate
    target: Rate | None = None
    """What the team aims for; shown, not judged."""


class AucRule(SlicedRule):
    """Area under the ROC curve of the favourable class at least `minimum`."""

    kind: Literal["auc"]
    minimum: Rate


class CalibrationRule(SlicedRule):
    """In each of `bins` equally filled bins the observed rate is within `maximum` of the mean prediction."""

    kind: Literal["calibration"]
    maximum: Rate
    bins: int = Field(default=10, ge=2, le=50)


class GapRule(Rule):
    """Largest difference between groups at most `maximum`."""

    kind: Literal["selection-rate-gap", "equalized-odds-gap", "equal-opportunity-gap"]
    by: tuple[str, ...] = Field(min_length=1)
    maximum: Rate
    within: tuple[str, ...] = ()
    """Control columns: the gap is asked within each of their groups."""
    minimum_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """Also asked of the smallest ratio between groups; 0.8 is the four-fifths rule."""
    classes: tuple[str, ...] = ()
    """Answers that are compared, each against all others; empty is the favourable class alone."""
    minimum_denominator: int = Field(default=10, ge=1)
    """Smaller cells are listed and not tested; while there are any, the check cannot pass."""


class EvasionRule(Rule):
    """Share of rows that are answered rightly and stay so under the worst feasible attack, at least `minimum`."""

    kind: Literal["evasion"]
    minimum: Rate
    attacks: tuple[Literal["fgsm", "pgd", "pgd-restarts", "apgd-ce", "apgd-dlr", "random-search"], ...] = Field(
        min_length=1
    )
    changes: tuple[Change, ...] = Field(min_length=1)
    rows: int = Field(default=1000, ge=50)
    """Seeded sample of the test rows."""
    steps: int = Field(default=20, ge=1, le=200)


class MembershipRule(Rule):
    """An attacker who knows a row cannot tell whether it was trained on."""

    kind: Literal["membership"]
    maximum_auc: float = Field(ge=0.5, le=1)
    maximum_tpr: Rate
    """Of true positives at `at_fpr` false positives."""
    at_fpr: float = Field(default=0.01, gt=0, lt=0.5)
    rows: int = Field(default=6000, ge=200)
    """Members, and as many non-members (fewer when the splits are smaller)."""


class ReferenceMembershipRule(Rule):
    """The stronger attack: the sweep's trials are reference models over the audit pool."""

    kind: Literal["reference-membership"]
    maximum_auc: float = Field(ge=0.5, le=1)
    maximum_tpr: Rate
    at_fpr: tuple[Annotated[float, Field(gt=0, lt=0.5)], ...] = (0.01, 0.001)
    """False positive rates; each needs `3 / rate` strangers in the pool to be measured."""
    maximum_epsilon: float | None = Field(default=None, gt=0, le=100)
    """Of a private training: the accountant must vouch for it, and the attack must not refute it."""
    delta: float = Field(default=1e-5, gt=0, lt=0.1)
    """At which epsilon is stated."""


class ParityRule(Rule):
    """The exported model answers like the torch module on the gate's rows."""

    kind: Literal["parity"]
    maximum: float = Field(gt=0)


class OverlapRule(Rule):
    """At most this share of test rows is found among the training rows."""

    kind: Literal["overlap"]
    maximum: Rate
    on: Literal["subject", "content"] = "subject"
    """Same person, or same features and label (which coarse tables repeat by coincidence)."""


class BackdoorRule(Rule):
    """No pair of values forces an answer that neither value forces alone (a trigger search, as a screen)."""

    kind: Literal["backdoor"]
    maximum: Rate
    """Of the share of rows turned by the pair beyond what its two values add up to."""
    rows: int = Field(default=300, ge=60)


class ChampionRule(Rule):
    """Not worse than the version in production by more than a margin, on the same rows."""

    kind: Literal["champion"]
    accuracy_margin: float = Field(gt=0, le=0.2)
    """Points of accuracy that may be lost."""
    loss_margin: float = Field(gt=0)
    """Rise of mean log loss that is allowed."""
    auc_margin: float = Field(gt=0, le=0.2)
    maximum_negative_flips: Rate
    """Of rows that were answered rightly before and are wrongly now."""
    by: tuple[str, ...] = ()
    """Groups in each of which the negative flips are bounded."""
    without_champion: Literal["allow", "block"] = "block"
    """What holds while nothing is in production yet."""


class ProjectRule(Rule):
    """A function of the project's own, `evaluation/checks/<file>.py:<function>`, or of an installed package.

    `package:<name>` is the entry point `<name>` of the group `mlops.gate_checks`.
    """

    kind: Literal["project"]
    function: Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9_]+\.py|package):[A-Za-z_][A-Za-z0-9_-]*$")]
    parameters: dict[str, float | str | bool] = Field(default_factory=dict)


class IncidentsRule(Rule):
    """Every open case of `evaluation/incidents/` and its neighbourhood."""

    kind: Literal["incidents"]
    maximum: Rate = 0.05
    """Of violations among the neighbours of a case of severity 2 or 3; severity 1 tolerates none."""


class Clause(Spec):
    """One of the company's values, mapped to a check or to a signed statement."""

    id: Name
    text: Sentence
    owner: str = Field(min_length=1)
    law: str = ""
    """Law or article that it follows, for the report."""
    check: str | None = None
    """Name of the check that answers it; None: a signed statement must."""


class SizeRule(Rule):
    """The exported model is small enough to serve."""

    kind: Literal["size"]
    maximum_megabytes: float = Field(gt=0)


AnyRule = Annotated[
    PrivacyRule
    | ScreenRule
    | MeanGapRule
    | LossRule
    | AccuracyRule
    | AucRule
    | CalibrationRule
    | GapRule
    | EvasionRule
    | MembershipRule
    | ReferenceMembershipRule
    | ParityRule
    | OverlapRule
    | MonotoneRule
    | DirectionRule
    | InvarianceRule
    | FunctionalityRule
    | AttributionRule
    | ArbitrarinessRule
    | BackdoorRule
    | ChampionRule
    | ProjectRule
    | IncidentsRule
    | SizeRule,
    Field(discriminator="kind"),
]


class Machines(Spec):
    """Where the checks run and who pays: workers on Ray under a lease."""

    budget: str | None = Field(default=None, min_length=1)
    """None: the budget that pays the training, so that a retrain after a withdrawal pays its gate too."""
    workers: int = Field(default=2, ge=1, le=256)
    accelerators: Accelerators = Accelerators("cpu", 0.5)
    """Of each worker."""
    window: Duration = 60.0
    """Paid ahead, and renewed at half time."""

    @field_validator("accelerators")
    @classmethod
    def _is_cpu(cls, value: Accelerators) -> Accelerators:
        if value.kind != "cpu":
            raise ValueError(f"checks run on cpu, not on {value.kind}")
        return value


class Policy(Spec):
    """Everything a policy file says."""

    version: Literal[1]
    product: str
    purpose: str = ""
    """What the model is for, for the model card."""
    not_for: str = ""
    """What it must not be used for, for the model card."""
    favourable_class: str
    """The answer that people want: `>50K`."""
    alpha: float = Field(default=0.05, gt=0, le=0.2)
    """Error rate of each PASS and of any FAIL."""
    looks: int = Field(default=200, ge=1)
    """How many candidates may be judged on the same test rows before fresh ones are needed."""
    machines: Machines | None = None
    """None: processes of the machine that runs the gate."""
    changes: tuple[Change, ...] = ()
    """What a person can truly change of their row; `mlops model explain` looks for another answer within it."""
    constraints: tuple[Constraint, ...] = ()
    """What holds between columns of every true row; no attack or counterfactual breaks it."""
    attributes: str | None = None
    """Parquet or CSV file, below the project, of attributes by `subject` that are joined in the gate only."""
    checks: tuple[AnyRule, ...] = ()
    """May be empty only in the sense that such a policy never passes anything."""

    values: tuple[Clause, ...] = ()
    """The company's values, clause by clause."""

    @model_validator(mode="after")
    def _clauses_name_checks(self) -> Self:
        known = {rule.name for rule in self.checks}
        strangers = sorted({clause.check for clause in self.values if clause.check and clause.check not in known})
        if strangers:
            raise ValueError(f"values name checks that do not exist: {', '.join(strangers)}")
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [rule.name for rule in self.checks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"checks named twice: {', '.join(twice)}")
        return self

    @property
    def digest(self) -> str:
        """`sha256:…` of the meaning of the file: comments, line breaks and machines do not count."""
        return digest_json(self.model_dump(mode="json", exclude={"machines"}))


def load_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        ProjectError: Absent or wrong; all problems at once.
    """
    return load_spec(path, Policy)


def find_owner(policy: Policy, about: str) -> tuple[str, bool]:
    """Role that may sign about a check or a clause, and whether it is a check.

    Raises:
        ProjectError: There is neither; or a check answers the clause, so nobody's word does.
    """
    for rule in policy.checks:
        if rule.name == about:
            return rule.owner, True
    for clause in policy.values:
        if clause.id == about and clause.check is None:
            return clause.owner, False
        if clause.id == about:
            raise ProjectError(f"the clause {about} is answered by the check {clause.check}, not by a statement")
    raise ProjectError(
        f"the policy of {policy.product} has no check and no clause called {about!r}",
        hint=f"mlops gate show {policy.product} lists what is undecided",
    )
