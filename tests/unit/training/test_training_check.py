"""Each broken line of the trainer contract is found and named; a sound trainer breaks none."""

import pytest
import torch

from mlops.training.check import check_trainer

torch.set_num_threads(1)
REPORT = 'worker.report(worker.measure(net.eval(), "validation", sensitive="region"))'
BROKEN = {
    "a sound trainer": ("", "", None, ""),
    "an optimizer that never steps": ("            optimizer.step()\n", "", "learns", "does not get better"),
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
