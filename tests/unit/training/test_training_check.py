"""Each broken line of the trainer contract is found and named; a sound trainer breaks none."""

import pytest
import torch

from mlops.training.check import check_trainer

torch.set_num_threads(1)
REPORT = 'worker.report(worker.measure(net.eval(), "validation", sensitive="region"))'
STEPS = 'params["learning_rate"])'
NET = 'torch.nn.Linear(3, params["classes"])'
BROKEN = {
    "a sound trainer": ("", "", None, ""),
    "all learned in the first epoch": (REPORT, f"optimizer.param_groups[0]['lr'] = 0.0\n        {REPORT}", None, ""),
    "an optimizer that never steps": ("            optimizer.step()\n", "", "learns", "does not get better"),
    "steps that lead away": (STEPS, f"{STEPS[:-1]}, maximize=True)", "learns", "untrained"),
    "a learning rate of 0": (STEPS, f"0 * {STEPS}", "learns", "is undone: 0."),
    "running means that move alone": (
        NET, f"torch.nn.Sequential(torch.nn.BatchNorm1d(3), {NET}); params['learning_rate'] = 0.0",
        "learns", "its learning rate above 0",
    ),
    "a loss that is always the same": (REPORT, 'worker.report({"loss": 0.5})', "learns", "undone: 0.5, 0.5, 0.5"),
    "state that epochs() is not given": (
        '{"model": net, "optimizer": optimizer}', '{"model": net}', "resumes", "scheduler",
    ),
    "state in a global": (
        "    net = model(params)", "    SEEN.append(1)\n    torch.manual_seed(len(SEEN))\n    net = model(params)",
        "deterministic", "keep nothing in globals",
    ),
    "training on validation rows": (
        'worker.batches("train", batch_size=16)', 'worker.batches("validation", batch_size=16)', "unseen", "validation",
    ),
    "a loss that is no number": (REPORT, 'worker.report({"loss": float("nan")})', "runs", "loss is nan"),
    "a metric no one declared": (REPORT, 'worker.report({"los": 1.0})', "runs", "did you mean 'los'?"),
    "no report": (REPORT, "pass", "runs", "ended without worker.report"),
    "an exception": (REPORT, "1 / 0", "runs", "ZeroDivisionError"),
    "a branch on the data": (
        "self.drop(torch.cat", "(self.drop if columns['age'].sum() > 0 else torch.nn.ReLU())(torch.cat", "exports", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_named(stage, source, contract, name):
    old, new, line, text = BROKEN[name]
    content = stage.trainer.read_text()
    assert old in content
    stage.trainer.write_text("SEEN = []\n" + content.replace(old, new) if old else content)
    spec = stage.spec(epochs=3)
    found = check_trainer(spec, trainer_file=stage.trainer, contract=contract, source=source, say=lambda line: None)
    assert [violation.line for violation in found] == ([line] if line else []), found
    if line:
        assert text in found[0].text


BRANCHES = {
    "a loop on the data": ("while bool((columns['age'] > 200).any()): columns['age'] = columns['age'] / 2", []),
    "rows that change each other's answers": ("columns['age'] = columns['age'] - columns['age'].mean()", ["exports"]),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_a_model_that_torch_itself_serves_need_not_export_but_answers_row_by_row(stage, source, contract, name):
    line, lines = BRANCHES[name]
    text = stage.trainer.read_text()
    last = "        return self.layers"
    assert last in text
    stage.trainer.write_text(text.replace(last, f"        columns = dict(columns)\n        {line}\n{last}"))
    spec = stage.spec(epochs=3, export="torch")
    found = check_trainer(spec, trainer_file=stage.trainer, contract=contract, source=source, say=lambda line: None)
    assert [violation.line for violation in found] == lines, found
