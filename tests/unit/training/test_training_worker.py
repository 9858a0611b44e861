"""The worker in one process: resume is bit-equal, and what a trainer does wrong is said in one sentence."""

import hashlib
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mlops.training.attempt import Answer, AttemptResult, Usage, choose_result
from mlops.training.checkpoints import fence_folder
from mlops.training.worker import Worker, run_attempt


def run(task, source, channel, **options):
    return run_attempt(task, source=source, channel=channel, rank=0, world_size=1, device="cpu", **options)


def with_body(task, tmp_path, body):
    """A trainer whose train() has another body."""
    path = tmp_path / "other.py"
    path.write_text(
        Path(task.trainer_file).read_text().split("def train(")[0] + f"def train(worker, params):\n{body}\n"
    )
    return replace(task, trainer_file=str(path))


START = "    net = model(params)\n    state = {'model': net}\n"


def test_an_attempt_reports_each_epoch_and_writes_its_weights(make_task, source, channel):
    listened = channel()
    result = run(make_task(), source, listened)
    assert result.outcome == "complete", result.reason
    assert [sorted(report) for report in listened.reports] == [
        ["accuracy", "equalized_odds_gap_region", "loss", "selection_rate_gap_region"]
    ] * 3
    assert result.weights_sha256 == "sha256:" + hashlib.sha256(Path(result.weights_file).read_bytes()).hexdigest()


class SlowSource:
    """Keeps its reader waiting for each batch."""

    def __init__(self, source, seconds):
        self.count_rows, self._source, self._seconds = source.count_rows, source, seconds

    def batches(self, split, **options):
        for batch in self._source.batches(split, **options):
            time.sleep(self._seconds)
            yield batch


def test_a_starving_worker_is_visible_in_each_report(make_task, source, channel, tmp_path):
    waited = {}
    for name, seconds in (("fed", 0.0), ("starving", 0.02)):
        heard = channel()
        run(make_task(trial_folder=str(tmp_path / name)), SlowSource(source, seconds), heard)
        assert [sorted(system) for system in heard.system] == [
            ["system/data_wait_ms_per_step", "system/data_wait_share"]
        ] * 3
        waited[name] = [system["system/data_wait_ms_per_step"] for system in heard.system]
    assert min(waited["starving"]) >= 20
    assert sum(waited["fed"]) < sum(waited["starving"])


def test_one_seed_gives_equal_weights_and_another_seed_others(make_task, source, channel, tmp_path):
    digests = [
        run(make_task(seed=seed, trial_folder=str(tmp_path / str(n))), source, channel()).weights_sha256
        for n, seed in enumerate((7, 7, 8))
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_resumed_attempt_equals_an_uninterrupted_one_bit_by_bit(make_task, source, channel, tmp_path, stop_after):
    whole, heard = make_task(trial_folder=str(tmp_path / "whole")), channel()
    expected = run(whole, source, heard)
    answers = [Answer.CONTINUE] * (stop_after - 1) + [Answer.YIELD]
    first = run(make_task(), source, channel(answers=answers))
    assert first.outcome == "yielded"
    later = channel()
    second = run(make_task(attempt=1), source, later)
    assert second.weights_sha256 == expected.weights_sha256
    assert later.reports == heard.reports[stop_after:]


def test_a_pruned_attempt_ends_without_weights_even_inside_a_catch_all(make_task, source, channel, tmp_path):
    body = (
        START
        + "    try:\n        for _ in worker.epochs(state):\n            worker.report({'loss': 1.0})\n"
        + "    except Exception:\n        raise SystemExit(3)"
    )
    result = run(with_body(make_task(), tmp_path, body), source, channel(answers=[Answer.PRUNE]))
    assert (result.outcome, result.weights_file) == ("pruned", "")


@pytest.mark.parametrize(
    ("body", "said"),
    {
        "loss that is not a number": ("        worker.report({'loss': float('nan')})", "loss is nan"),
        "metric that the sweep needs is missing": ("        worker.report({'accuracy': 1.0})", "loss"),
        "epoch without a report": ("        pass", "without worker.report"),
        "exception": ("        raise KeyError('colour')", "other.py:24: KeyError: 'colour'"),
        "exit": ("        raise SystemExit(3)", "other.py:24: SystemExit: 3"),
        "file that is not its own": (
            "        raise PermissionError(13, 'Permission denied', '/x')",
            "below `worker.folder`",
        ),
        "test split": ("        list(worker.batches('test', batch_size=8))", "test split"),
        "left the loop early": ("        worker.report({'loss': 1.0})\n        break", "before its last epoch"),
    }.values(),
)
def test_what_a_trainer_does_wrong_is_the_reason_of_its_trial(make_task, source, channel, tmp_path, body, said):
    task = with_body(make_task(), tmp_path, f"{START}    for _ in worker.epochs(state):\n{body}")
    result = run(task, source, channel())
    assert result.outcome == "failed"
    assert said in result.reason


def test_a_trainer_without_epochs_is_told_so(make_task, source, channel, tmp_path):
    result = run(with_body(make_task(), tmp_path, "    pass"), source, channel())
    assert "worker.epochs" in result.reason


def test_a_yield_at_the_last_epoch_finishes_instead(make_task, source, channel):
    result = run(make_task(epochs=1), source, channel(answers=[Answer.YIELD]))
    assert result.outcome == "complete"


@pytest.mark.parametrize("step", [2, 9, 17, 31], ids=lambda step: f"at step {step}")
def test_a_trial_that_yields_inside_an_epoch_goes_on_to_the_same_weights(make_task, source, channel, tmp_path, step):
    whole = run(make_task(trial_folder=str(tmp_path / "whole")), source, channel())
    folder = str(tmp_path / "parts")
    first = run(make_task(trial_folder=folder), source, channel(yield_at=step))
    second = run(make_task(trial_folder=folder, attempt=1), source, channel())
    assert (first.outcome, second.outcome) == ("yielded", "complete")
    assert second.weights_sha256 == whole.weights_sha256


@pytest.mark.parametrize(
    ("raised", "outcome"),
    [
        ("RuntimeError('[/build/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:2740')", "lost"),
        ("torch.distributed.DistBackendError('NCCL error: remote process exited')", "lost"),
        ("RuntimeError('shapes differ')", "failed"),
        ("ConnectionResetError('of the trainer, not of the group')", "failed"),
    ],
)
def test_a_worker_that_loses_another_one_is_lost_and_did_not_fail(
    make_task, source, channel, tmp_path, raised, outcome
):
    wrapped = f"    try:\n        raise {raised}\n    except Exception as error:\n        raise ValueError from error"
    for text in (f"    raise {raised}", wrapped):
        result = run(with_body(make_task(), tmp_path, text), source, channel())
        assert (result.outcome, result.has_lost_peer) == (outcome, outcome == "lost")


def result_of(outcome, **more):
    return AttemptResult(outcome, Usage(0, 0), **more)


def test_of_several_workers_that_one_speaks_where_it_began():
    complete, cause = result_of("complete", weights_file="w"), result_of("failed", reason="only here")
    peerless = result_of("lost", reason="connection closed", has_lost_peer=True)
    silent = result_of("lost", reason="")
    assert choose_result({0: complete, 1: result_of("complete")}) is complete
    assert choose_result({0: complete, 1: peerless}) is peerless
    assert choose_result({0: peerless, 1: cause, 2: complete}) is cause
    assert choose_result({0: silent, 2: cause}) is cause
    assert choose_result({1: peerless}) is peerless


def test_a_late_attempt_commits_nothing_once_a_later_one_has_begun(make_task, source, channel, tmp_path):
    folder = tmp_path / "trial"

    class Overtaken(channel):
        def report(self, **options):
            fence_folder(folder, attempt=1)
            return super().report(**options)

    late = run(make_task(trial_folder=str(folder), epochs=2), source, Overtaken())
    assert late.outcome == "lost"
    assert "attempt 1 of the trial has begun" in late.reason
    assert sorted(path.name for path in folder.iterdir()) == ["attempt"]


def test_a_smaller_group_accumulates_the_gradient_of_the_same_global_batch(make_task, source, channel, tmp_path):
    worker = Worker(make_task(most_workers=4), source=source, channel=channel(), rank=0, world_size=1, device="cpu")
    batch = next(worker.batches("train", batch_size=50))
    whole, parts = (torch.nn.Linear(1, 2) for _ in range(2))
    parts.load_state_dict(whole.state_dict())

    def loss(net, rows):
        return torch.nn.functional.cross_entropy(net(rows.features["age"][:, None] / 100), rows.label)

    loss(whole, batch).backward()
    sizes = []
    for piece, share in worker.pieces(batch, parts):
        (loss(parts, piece) * share).backward()
        sizes.append(len(piece.label))
    assert sizes == [13, 13, 12, 12]
    torch.testing.assert_close(parts.weight.grad, whole.weight.grad)
