"""The sweep spec: every problem at once, and names that the trainer does not know."""

from pathlib import Path

import pytest

from mlops.errors import ProjectError
from mlops.specs import parse_spec
from mlops.training.spec import SweepSpec, load_sweep_spec, verify_parameters
from mlops.training.trainer import load_trainer, read_trainer

ROOT = Path(__file__).parents[3]
GOOD = """
version: 1
product: tiny
dataset: people
budget: research
objective: {metric: loss}
space:
  learning_rate: {low: 0.001, high: 0.1, log: true}
trials: 4
epochs: 3
"""


def problems_of(text):
    with pytest.raises(ProjectError) as caught:
        parse_spec(text, SweepSpec, source="tiny.yaml")
    return "\n".join(caught.value.items)


def test_the_sweeps_of_this_repository_are_valid_and_fit_their_trainers():
    for path in (ROOT / "training").glob("*.yaml"):
        spec = load_sweep_spec(path)
        verify_parameters(spec, trainer_file=path.with_suffix(".py"))
        assert len(path.with_suffix(".py").read_text().splitlines()) <= 60


def test_all_problems_are_reported_at_once_with_their_lines():
    text = GOOD.replace("trials: 4", "trials: 0").replace("low: 0.001", "low: 7") + "colour: red\nworkers: none\n"
    found = problems_of(text)
    assert "tiny.yaml:9: trials" in found
    assert "the range 7.0 to 0.1 is empty" in found
    assert "colour: unknown field" in found
    assert "workers" in found


@pytest.mark.parametrize(
    ("old", "new", "said"),
    {
        "empty choices": ("low: 0.001, high: 0.1, log: true", "choices: []", "at least 1 item"),
        "log of zero": ("low: 0.001", "low: 0", "above 0"),
        "not finite": ("high: 0.1", "high: .inf", "finite"),
        "condition on what comes later": ("log: true", "when: {width: 3}", "does not come before"),
        "constraint without bound": ("trials: 4", "trials: 4\nconstraints: [{metric: gap}]", "exactly one of"),
        "parameter that the machine gives": ("trials: 4", "trials: 4\nfixed: {columns: 3}", "given by the machine"),
        "parameter in both": ("trials: 4", "trials: 4\nfixed: {learning_rate: 3}", "space and in fixed"),
        "first point outside": ("trials: 4", "trials: 4\nfirst: [{width: 3}]", "not in space"),
        "several objectives without nsga2": (
            "objective: {metric: loss}",
            "objective: [{metric: loss}, {metric: gap}]",
            "nsga2",
        ),
        "first point out of the range": (
            "trials: 4",
            "trials: 4\nfirst: [{learning_rate: 55}]",
            "first.0.learning_rate",
        ),
        "first point of another type": (
            "trials: 4",
            "trials: 4\nfirst: [{learning_rate: fast}]",
            "'fast' is no number",
        ),
        "condition that never holds": (
            "trials: 4",
            "  width: {choices: [8]}\n  depth: {choices: [1], when: {width: 7}}\ntrials: 4",
            "tiny.yaml:2: (file): space.depth.when.width: 7 is none of 8, so depth is never searched",
        ),
        "a choice twice": ("low: 0.001, high: 0.1, log: true", "choices: [8, 16, 8]", "has 8 more than once"),
        "step wider than the range": ("log: true", "step: 5", "is larger than the range"),
        "whole steps of a logarithm": (
            "low: 0.001, high: 0.1, log: true",
            "kind: int, low: 8, high: 64, step: 8, log: true",
            "space.learning_rate: `log` and `step` exclude each other",
        ),
        "grid over all real numbers": ("trials: 4", "trials: 4\nsampler: grid", "a grid needs `step` or `choices`"),
        "kind that nobody knows": (
            "low: 0.001",
            "kind: real, low: 0.001",
            "'real' is none of 'int', 'choice', 'float'",
        ),
        "objective upside down": (
            "objective: {metric: loss}",
            "objective: {metric: loss, direction: down}",
            "tiny.yaml:6: objective.direction: Input should be 'minimize' or 'maximize'",
        ),
        "lag below groups": ("trials: 4", "trials: 4\nlag: 1\ngroups: 3", "always wait"),
        "divided accelerator": ("trials: 4", "trials: 4\naccelerators: 0.5xh100", "cannot be divided"),
    }.values(),
)
def test_a_bad_spec_says_why(old, new, said):
    assert old in GOOD
    assert said in problems_of(GOOD.replace(old, new))


def test_names_that_trainer_and_sweep_do_not_share_are_refused_with_a_suggestion(stage):
    spec = parse_spec(GOOD.replace("learning_rate", "learning_rat"), SweepSpec, source="tiny.yaml")
    with pytest.raises(ProjectError) as caught:
        verify_parameters(spec, trainer_file=stage.trainer)
    assert any("did you mean 'learning_rate'" in item for item in caught.value.items)
    assert any("reads params['learning_rate'], which the sweep does not give" in item for item in caught.value.items)


def test_what_a_served_trainer_imports_at_its_top_must_be_in_its_image(stage):
    spec = parse_spec(GOOD + "export: torch\n", SweepSpec, source="tiny.yaml")
    text = stage.trainer.read_text()
    stage.trainer.write_text(f"import math, numpy as np\nfrom torch.nn import functional\n{text}")
    verify_parameters(spec, trainer_file=stage.trainer)
    stage.trainer.write_text(f"{text}\ndef later():\n    import pandas\n")
    verify_parameters(spec, trainer_file=stage.trainer)
    late = "def grown(row):\n    from pandas import concat\n    return concat(row)\n"
    stage.trainer.write_text(
        f"{late}{text.replace('def model(params):', 'def model(params):' + chr(10) + '    grown')}"
    )
    with pytest.raises(ProjectError, match="imports pandas, which its image does not have"):
        verify_parameters(spec, trainer_file=stage.trainer)
    stage.trainer.write_text(f"import scipy.stats\nfrom sklearn.tree import plot_tree\n{text}")
    with pytest.raises(ProjectError, match="imports scipy, sklearn, which its image does not have"):
        verify_parameters(spec, trainer_file=stage.trainer)
    verify_parameters(spec.model_copy(update={"export": "onnx"}), trainer_file=stage.trainer)


def test_a_trainer_is_read_without_running_it(tmp_path):
    path = tmp_path / "t.py"
    path.write_text(
        "raise SystemExit\ndef model(params):\n    return params['a'], params.get('b')\n"
        "def train(worker, params):\n    return params['columns']\n"
    )
    trainer = read_trainer(path)
    assert (trainer.required, trainer.optional, trainer.known) == ({"a", "columns"}, {"b"}, {"a", "b"})
    path.write_text("PARAMETERS = ('x', 'y')\n" + path.read_text())
    assert read_trainer(path).known == {"x", "y"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def model(params): pass", "train(worker, params) is missing"),
        ("def model(p): pass\ndef train(worker, params): pass", "model(params) is missing"),
        ("def model(params:\n", "not valid Python"),
    ],
)
def test_a_file_that_is_no_trainer_says_what_is_missing(tmp_path, text, said):
    path = tmp_path / "t.py"
    path.write_text(text)
    with pytest.raises(ProjectError) as caught:
        read_trainer(path)
    assert said in "\n".join([caught.value.message, *caught.value.items])


def test_a_trainer_that_fails_on_import_is_named(tmp_path):
    path = tmp_path / "t.py"
    path.write_text("def model(params): pass\ndef train(worker, params): pass\n1 / 0\n")
    with pytest.raises(Exception, match="fails when imported: ZeroDivisionError"):
        load_trainer(path)


def test_conditions_may_name_earlier_and_fixed_parameters():
    text = GOOD.replace("trials: 4", "trials: 4\nfixed: {kind: big}").replace(
        "trials", "  momentum: {low: 0, high: 1, when: {kind: big}}\ntrials", 1
    )
    assert parse_spec(text, SweepSpec, source="tiny.yaml").space["momentum"].when == {"kind": "big"}


def test_an_exponent_without_a_dot_is_a_number_although_yaml_reads_a_word():
    text = GOOD.replace("low: 0.001, high: 0.1, log: true", "choices: [1e-3, 5E2, big]") + "fixed: {decay: 1e-4}\n"
    spec = parse_spec(text, SweepSpec, source="tiny.yaml")
    assert spec.to_json()["space"]["learning_rate"]["choices"] == [0.001, 500.0, "big"]
    assert spec.fixed == {"decay": 0.0001}
