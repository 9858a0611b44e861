"""The main job, measured: time and memory of a first and a second `mlops release income` from a fresh clone.

Downloads are left aside: the content store of this checkout (`.mlops/store`) is copied into the clone, and so is the
environment used (this interpreter). Run `make release` once before, so that the store is filled.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from reporting import Row, report

ROOT = Path(__file__).parents[1]
MLOPS = [str(Path(sys.executable).parent / "mlops")]


def peak_memory(process: subprocess.Popen[bytes], peak: list[int]) -> None:
    """Largest sum of proportional set sizes over the process tree (Ray's daemons included, found by session)."""
    while process.poll() is None:
        total = 0
        for one in psutil.process_iter(["cmdline", "ppid"]):
            try:
                command = " ".join(one.info["cmdline"] or [])
                if str(ROOT) in command or "ray" in command[:200]:
                    total += one.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        peak[0] = max(peak[0], total)
        time.sleep(0.5)


def run_release(folder: Path) -> tuple[float, int]:
    """Seconds and peak bytes of one release."""
    peak = [0]
    started = time.perf_counter()
    process = subprocess.Popen([*MLOPS, "release", "income"], cwd=folder)
    watcher = threading.Thread(target=peak_memory, args=(process, peak))
    watcher.start()
    code = process.wait()
    seconds = time.perf_counter() - started
    watcher.join()
    if code != 0:
        raise SystemExit(f"mlops release exited with {code}")
    return seconds, peak[0]


def find_accuracy(folder: Path) -> float:
    """Test accuracy of the released model, from its gate report."""
    shown = subprocess.run([*MLOPS, "gate", "show", "income", "--json"], cwd=folder, check=True, capture_output=True)
    checks = json.loads(shown.stdout)["checks"]
    return next(float(check["claims"][0]["estimate"]) for check in checks if check["name"] == "accuracy")


def main() -> None:
    """Clone, copy the downloads, release twice."""
    scratch = Path(tempfile.mkdtemp(prefix="mlops-bench-"))
    clone = scratch / "clone"
    try:
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        for name in ("store", "cache"):
            if (ROOT / ".mlops" / name).is_dir():
                shutil.copytree(ROOT / ".mlops" / name, clone / ".mlops" / name)
        os.environ.pop("RAY_ADDRESS", None)
        first, memory = run_release(clone)
        second, _ = run_release(clone)
        accuracy = find_accuracy(clone)
        subprocess.run([*MLOPS, "stop"], cwd=clone, check=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    how = "fresh clone, 2 cores, downloads copied from this checkout's content store"
    report(
        "release",
        [
            Row("first release", first, "s", how, asked="<= 300", holds=first <= 300),
            Row("peak memory (PSS)", memory / 1e9, "GB", how, asked="<= 6", holds=memory <= 6e9),
            Row("second release, nothing changed", second, "s", how, asked="<= 15", holds=second <= 15),
            Row("test accuracy of the release", accuracy, "share", how, asked=">= 0.84", holds=accuracy >= 0.84),
        ],
    )


if __name__ == "__main__":
    main()
