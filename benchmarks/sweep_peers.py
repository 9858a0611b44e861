"""The rivals of bench_sweeps.py, each in a process of its own: Ray Tune (default, reuse_actors) and plain training.

`python sweep_peers.py WHAT FOLDER TRIALS CPUS SECONDS`, or `… plain FOLDER TRIALS PASSES`; prints one line of JSON.
Leaves to others: our side and the comparison (bench_sweeps.py).
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ.update(
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", RAY_AIR_NEW_OUTPUT="0", RAY_USAGE_STATS_ENABLED="0",
    RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS="0", OMP_NUM_THREADS="1", MLFLOW_TRACKING_INSECURE_TLS="false",
)  # fmt: skip
sys.path.insert(0, str(Path(__file__).parent))

from sweep_trainers import EPOCHS, load_tensors, train_plain


def run_tune(folder: Path, *, trials: int, cpus: int, seconds: float, is_reused: bool) -> dict[str, float]:
    """One sweep after Ray is up, until it is in MLflow; `seconds` 0 trains digits, else each trial sleeps so long."""
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    tensors = str(folder / "digits.pt")
    tracking = f"sqlite:///{folder}/peer-{os.getpid()}.sqlite"

    class Trial(tune.Trainable):
        def setup(self, config: dict) -> None:
            import torch

            torch.set_num_threads(1)
            self.settings, self.reports = config, []
            self.tensors = None if seconds else load_tensors(Path(tensors))

        def reset_config(self, new_config: dict) -> bool:
            self.settings, self.reports = new_config, []
            return True

        def step(self) -> dict:
            if seconds:
                time.sleep(seconds)
                return {"loss": self.settings["learning_rate"], "done": True}
            if not self.reports:  # the whole training at the first step; each epoch is reported as ours is
                train_plain(
                    self.tensors, learning_rate=self.settings["learning_rate"], seed=1,
                    report=lambda metrics, epoch: self.reports.append(metrics),
                )  # fmt: skip
                self.position = 0
            metrics = self.reports[self.position]
            self.position += 1
            return {**metrics, "done": self.position == EPOCHS}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            return None

        def load_checkpoint(self, checkpoint: str) -> None:
            return None

    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, configure_logging=False)
    started = time.perf_counter()
    tune.run(
        Trial,
        config={"learning_rate": tune.loguniform(1e-3, 1e-1)},
        num_samples=trials,
        resources_per_trial={"cpu": 1},
        reuse_actors=is_reused,
        verbose=0,
        storage_path=str(folder / f"tune-{os.getpid()}"),
        callbacks=[MLflowLoggerCallback(tracking_uri=tracking, experiment_name="peer")],
    )
    taken = time.perf_counter() - started
    ray.shutdown()
    return {"seconds": taken}


def run_plain(folder: Path, *, trials: int, passes: int) -> dict[str, float]:
    """`trials` trainings one after the other in this process, imports and data loading left out."""
    import torch

    torch.set_num_threads(1)
    tensors = load_tensors(folder / "digits.pt")
    train_plain(tensors, learning_rate=0.01, seed=0, report=lambda metrics, epoch: None)  # warm
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    each = [
        train_plain(tensors, learning_rate=0.01, seed=seed, report=lambda metrics, epoch: None, passes=passes)
        for seed in range(trials)
    ]
    return {"seconds": time.perf_counter() - started, "shortest": min(each)}


def main() -> None:
    what, folder, trials, *rest = sys.argv[1:]
    if what == "plain":
        found = run_plain(Path(folder), trials=int(trials), passes=int(rest[0]))
    else:
        cpus, seconds = rest
        found = run_tune(
            Path(folder), trials=int(trials), cpus=int(cpus), seconds=float(seconds), is_reused=what == "reuse"
        )
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
