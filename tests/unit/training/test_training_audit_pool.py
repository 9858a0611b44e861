"""The audit pool: half of it in each trial, drawn anew by each, and scored by the final model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mlops.errors import TrainingError
from mlops.training.audit_pool import choose_pool, draw_members, load_audits
from mlops.training.trainer import load_trainer
from mlops.training.worker import Worker, run_attempt


def test_the_pool_is_fixed_by_the_seed_and_each_trial_draws_half_of_it_independently():
    pool = choose_pool(20_000, size=4_000, seed=3)
    assert len(np.unique(pool)) == 4_000
    assert np.array_equal(pool, choose_pool(20_000, size=4_000, seed=3))
    assert not np.array_equal(pool, choose_pool(20_000, size=4_000, seed=4))
    draws = np.stack([draw_members(pool, trial_seed=seed) for seed in range(40)])
    assert np.all(np.abs(draws.mean(1) - 0.5) < 0.04)  # five standard deviations
    assert np.all(np.abs(draws.mean(0) - 0.5) < 0.45)
    assert abs(np.corrcoef(draws[0], draws[1])[0, 1]) < 0.08


def test_a_pool_larger_than_the_split_is_refused():
    with pytest.raises(TrainingError, match="more than the 10 rows"):
        choose_pool(10, size=11, seed=0)


def test_a_trial_trains_on_its_members_and_on_all_rows_outside_the_pool(make_task, source, channel):
    task = make_task(audit_pool=60, audit_seed=1)
    worker = Worker(task, source=source, channel=channel(), rank=0, world_size=1, device="cpu")
    seen = torch.cat([batch.rows for batch in worker.batches("train", batch_size=40)]).numpy()
    pool = choose_pool(200, size=60, seed=1)
    members = draw_members(pool, trial_seed=task.seed)
    expected = np.setdiff1d(np.arange(200), pool[~members])
    assert np.array_equal(np.sort(seen), expected)
    assert len(torch.cat([batch.rows for batch in worker.batches("validation", batch_size=40)])) == 200


def test_the_evidence_holds_the_final_models_log_odds_for_every_row_of_the_pool(make_task, source, channel):
    task = make_task(audit_pool=60, audit_seed=1, params={**make_task().params, "learning_rate": 0.05})
    text = Path(task.trainer_file).read_text().replace("batch_size=16", "batch_size=40")
    Path(task.trainer_file).write_text(text)
    result = run_attempt(task, source=source, channel=channel(), rank=0, world_size=1, device="cpu")
    assert result.outcome == "complete", result.reason
    matrix = load_audits({4: Path(task.trial_folder), 5: Path(task.trial_folder) / "nothing"})
    assert matrix.trials == (4,)
    from safetensors.torch import load_file

    model = load_trainer(Path(task.trainer_file)).model(dict(task.params)).eval()
    model.load_state_dict(load_file(result.weights_file))
    rows = torch.from_numpy(matrix.rows)
    with torch.no_grad():
        chances = model({"age": source.age[rows], "plan": source.plan[rows]}).double().softmax(1)
    own = chances.gather(1, source.label[rows][:, None])[:, 0]
    assert np.allclose(matrix.scores[0], (own.log() - (1 - own).log()).numpy(), atol=1e-4)


def test_batches_too_small_for_leaving_rows_out_are_refused(make_task, source, channel):
    task = make_task(audit_pool=60)
    worker = Worker(task, source=source, channel=channel(), rank=0, world_size=1, device="cpu")
    with pytest.raises(TrainingError, match="needs 16 rows"):
        list(worker.batches("train", batch_size=8))


def test_without_evidence_there_is_no_matrix(tmp_path):
    assert load_audits({0: tmp_path}) is None
