"""One worker as a plain process: what a Ray actor does, told by lines of JSON on standard input.

`python -m mlops.training.process_worker SETUP.json`, started by process_group.py, confined from its first instruction.
In: `{"extend": until_us}`, `{"task": {…}}`, `{"answer": n}`,
`{"yield": true}`. Out: `{"ready": device}`, `{"report": [epoch, metrics]}`
(rank 0), `{"ended": {…}}`. It ends when its input ends, so that it cannot outlive its driver.
Leaves to others: training (ray_worker.WorkerActor, which needs no Ray for this; worker.py).
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from mlops.datasets.version import load_dataset_version
from mlops.errors import EXIT_BUG
from mlops.places import Places
from mlops.training.attempt import AttemptKey, AttemptTask
from mlops.training.ray_worker import SourceRecipe, WorkerActor, WorkerSetup


def serve(setup: dict[str, Any], *, said: TextIO, heard: TextIO) -> None:
    """Join the group, then run tasks until the input ends."""
    places = Places(Path(setup["root"]))
    version = load_dataset_version(places, setup["dataset"], revision=setup["dvc_digest"])
    recipe = SourceRecipe(version, setup["cache"])
    actor = WorkerActor(WorkerSetup(source=recipe, keys_folder=str(places.keys_folder)), int(setup["seconds_us"]))
    say = _Sayer(said)
    threading.Thread(target=_listen, args=(actor, heard, say, setup["rank"]), daemon=True).start()
    device = actor.join(f"tcp://127.0.0.1:{setup['port']}", setup["rank"], setup["world_size"])
    say({"ready": device})
    threading.Event().wait()  # the listener ends this process


class _Sayer:
    """Writes one line per value, from several threads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def __call__(self, value: dict[str, Any]) -> None:
        with self._lock:
            self._stream.write(json.dumps(value) + "\n")
            self._stream.flush()


def _listen(actor: WorkerActor, heard: TextIO, say: _Sayer, rank: int) -> None:
    key: AttemptKey = ("", 0, 0)
    for line in heard:
        message = json.loads(line)
        if "extend" in message:
            actor.extend(int(message["extend"]))
        elif "yield" in message:
            actor.ask_yield(key)
        elif "answer" in message:
            threading.Thread(target=_pass_report, args=(actor, say, key, int(message["answer"])), daemon=True).start()
        elif "task" in message:
            task = AttemptTask(**{**message["task"], "required_metrics": tuple(message["task"]["required_metrics"])})
            key = task.key
            threading.Thread(target=_run, args=(actor, task, say), daemon=True).start()
            if rank == 0:
                threading.Thread(target=_pass_report, args=(actor, say, key, None), daemon=True).start()
    os._exit(0)  # the driver is gone or done; nothing here is worth tidying


def _pass_report(actor: WorkerActor, say: _Sayer, key: AttemptKey, answer: int | None) -> None:
    report = actor.next_report(key, answer)
    if report is not None:
        say({"report": [report[0], report[1]]})


def _run(actor: WorkerActor, task: AttemptTask, say: _Sayer) -> None:
    try:
        say({"ended": asdict(actor.run(task))})
    except BaseException as error:  # whatever it is, the driver must hear of it
        say({"ended": None, "reason": f"{type(error).__name__}: {error}"})
        os._exit(EXIT_BUG)


if __name__ == "__main__":
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a trainer prints must not look like an answer
    serve(json.loads(sys.argv[1]), said=protocol, heard=sys.stdin)
