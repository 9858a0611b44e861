"""Counters and histograms in Prometheus' text format. Leaves to others: scraping and alerting."""

from __future__ import annotations

import resource
from bisect import bisect_left
from collections import defaultdict
from pathlib import Path

_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """What this process counted."""

    def __init__(self) -> None:
        self._requests: defaultdict[tuple[str, str, int], int] = defaultdict(int)
        self._buckets: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * (len(_BOUNDS) + 1))
        self._seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.in_flight = 0

    def count(self, model: str, version: str, *, status: int, seconds: float) -> None:
        """One answered inference request."""
        self._requests[model, version, status] += 1
        self._buckets[model, version][bisect_left(_BOUNDS, seconds)] += 1
        self._seconds[model, version] += seconds

    def render(self, runs: list[tuple[str, str, int, int]]) -> bytes:
        """All of it.

        Args:
            runs: Model, version, runs of the session and rows answered.
        """
        lines = ["# TYPE mlops_requests_total counter"]
        for (model, version, status), count in sorted(self._requests.items()):
            lines.append(f'mlops_requests_total{{{_labels(model, version)},status="{status}"}} {count}')
        lines.append("# TYPE mlops_request_seconds histogram")
        for (model, version), buckets in sorted(self._buckets.items()):
            total = 0
            for bound, count in zip((*map(str, _BOUNDS), "+Inf"), buckets, strict=True):
                total += count
                lines.append(f'mlops_request_seconds_bucket{{{_labels(model, version)},le="{bound}"}} {total}')
            lines.append(f"mlops_request_seconds_sum{{{_labels(model, version)}}} {self._seconds[model, version]:.6f}")
            lines.append(f"mlops_request_seconds_count{{{_labels(model, version)}}} {total}")
        lines.append("# TYPE mlops_model_runs_total counter")
        lines += [f"mlops_model_runs_total{{{_labels(model, version)}}} {count}" for model, version, count, _ in runs]
        lines.append("# TYPE mlops_model_rows_total counter")
        lines += [f"mlops_model_rows_total{{{_labels(model, version)}}} {rows}" for model, version, _, rows in runs]
        lines += ["# TYPE process_resident_memory_bytes gauge", f"process_resident_memory_bytes {_resident_bytes()}"]
        lines += ["# TYPE mlops_requests_in_flight gauge", f"mlops_requests_in_flight {self.in_flight}"]
        return ("\n".join(lines) + "\n").encode()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


def _labels(model: str, version: str) -> str:
    return f'model="{model}",version="{version}"'
