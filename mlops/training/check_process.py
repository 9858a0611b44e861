"""The trainer check in a process of its own: confined like a worker, and killed when it does not come to its end.

`python -m mlops.training.check_process`, with the task as JSON on standard input; each line of its output is JSON:
`{"say": …}` or `{"violations": […]}`. The author's own tests run beside it.
Leaves to others: what is checked (check.py), remembering the result (step_check.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlops.datasets.version import DatasetVersion, load_version_of
from mlops.places import Places
from mlops.processes import collect_less
from mlops.provenance.confinement import confine_writes, confined_command
from mlops.training.contract import contract_of_schema
from mlops.training.spec import SweepSpec, load_sweep_spec
from mlops.training.trainer import Violation

LIMIT_SECONDS = 120.0
"""A sound trainer needs a few seconds; this much is for a machine that is busy with other things."""


def check_confined(
    places: Places,
    spec: SweepSpec,
    *,
    version: DatasetVersion,
    say: Callable[[str], None],
    limit_seconds: float = LIMIT_SECONDS,
) -> tuple[Violation, ...]:
    """Every line of the contract that a product's trainer breaks, whatever it does: hang, exit, crash.

    Args:
        places: The project.
        spec: The sweep.
        version: The data; a few rows are used.
        say: Prints one line of progress.
        limit_seconds: The trainer is ended after this.
    """
    process = _start(places, spec, version)
    is_late = threading.Event()

    def end() -> None:
        is_late.set()
        _kill_all(process)

    timer = threading.Timer(limit_seconds, end)
    timer.start()
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    reader.start()
    found: tuple[Violation, ...] | None = None
    try:
        for line in process.stdout or ():
            message = json.loads(line)
            if "say" in message:
                say(message["say"])
            else:
                found = tuple(Violation(**violation) for violation in message["violations"])
        process.wait()
    finally:
        timer.cancel()
        _kill_all(process)
        reader.join(timeout=1.0)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    if found is not None:
        return found
    if is_late.is_set():
        text = f"the trainer does not end within {limit_seconds:g} s on a few rows; look for a loop without an end"
        return (Violation("ends", text),)
    last = next((line.strip() for line in reversed(errors) if line.strip()), "it said nothing")
    how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
    return (Violation("runs", f"the trainer ended the whole process ({how}): {last[:300]}"),)


def _start(places: Places, spec: SweepSpec, version: DatasetVersion) -> subprocess.Popen[str]:
    places.keys_folder.mkdir(parents=True, exist_ok=True)
    places.cache.mkdir(parents=True, exist_ok=True)
    task = {
        "root": str(places.root),
        "product": spec.product,
        "dataset": version.name,
        "dvc_digest": version.dvc_digest,
        "object_urls": version.object_urls,
    }
    command, _ = confined_command((sys.executable, "-P", "-m", __name__), hidden=places.keys_folder)
    quiet = {"ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=places.root,
        env={**os.environ, **quiet}, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died: what it said tells why
        process.stdin.write(json.dumps(task))
        process.stdin.close()
    return process


def run_own_tests(places: Places, product: str) -> subprocess.Popen[str] | None:
    """Start the author's tests in `tests/trainers/<product>/`; None when there are none."""
    folder = tests_folder(places, product)
    if not any(folder.glob("test_*.py")):
        return None
    command = [
        sys.executable, "-m", "pytest", "-q", "-x", "--tb=line", "-p", "no:cacheprovider", "-p", "no:randomly",
        "--import-mode=importlib", "-c", os.devnull, "--rootdir", str(places.root), str(folder),
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=places.root)


def tests_folder(places: Places, product: str) -> Path:
    """Where the author's own tests of a trainer lie."""
    return places.root / "tests" / "trainers" / product


def judge_own_tests(process: subprocess.Popen[str], *, folder: Path) -> tuple[Violation, ...]:
    """Wait for the author's tests."""
    said, _ = process.communicate()
    if process.returncode == 0:
        return ()
    lines = [line for line in said.splitlines() if line.strip()]
    shown = next((line for line in lines if line.startswith("FAILED")), lines[-1] if lines else "no output")
    return (Violation("tests", f"{folder.parent.name}/{folder.name}: {shown}; run `pytest {folder}` to see it all"),)


def _kill_all(process: subprocess.Popen[str]) -> None:
    """The process and all it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _serve(task: dict[str, Any], *, tell: Callable[[dict[str, Any]], None]) -> None:
    places = Places(Path(task["root"]))
    product = str(task["product"])
    own = run_own_tests(places, product)
    spec = load_sweep_spec(places.sweep_file(product))
    version = load_version_of(tuple(task["object_urls"]), task["dataset"], dvc_digest=task["dvc_digest"])
    from mlops.datasets.reader import ShardReader  # loads pyarrow and torch
    from mlops.training.check import check_trainer

    shards = places.cache / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    confine_writes(writable=[shards])  # before any thread of a library starts
    violations = check_trainer(
        spec,
        trainer_file=places.trainer_file(product),
        contract=contract_of_schema(version.schema, product=product, digest=version.digest),
        source=ShardReader(version, shards),
        say=lambda line: tell({"say": line}),
    )
    if own is not None:
        folder = tests_folder(places, product)
        failed = judge_own_tests(own, folder=folder)
        violations += failed
        tell({"say": f"violated: tests: {failed[0].text}" if failed else f"tests: those in {folder.name}/ pass"})
    tell({"violations": [{"line": item.line, "text": item.text} for item in violations]})


if __name__ == "__main__":
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
    collect_less()
    os.dup2(2, 1)  # what a trainer prints must not look like an answer

    def _tell(message: dict[str, Any]) -> None:
        protocol.write(json.dumps(message) + "\n")
        protocol.flush()

    _serve(json.loads(sys.stdin.read()), tell=_tell)
