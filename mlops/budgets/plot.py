"""Accelerators in use over time, as PNG or SVG."""

from __future__ import annotations

from pathlib import Path

from mlops.budgets.simulate import SimulationResult


def write_plot(result: SimulationResult, path: Path, *, capacity: float, title: str) -> None:
    """Write a picture; its format is the file's ending.

    Args:
        result: Of a replay.
        path: `.svg` or `.png`.
        capacity: Accelerators of the cluster.
        title: Stands above the picture.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    hours = [time / 3_600 for time, _ in result.use]
    used = [count for _, count in result.use]
    with mpl.rc_context({"svg.hashsalt": "mlops"}):
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.fill_between(hours, used, step="post", alpha=0.5, linewidth=0)
        axes.axhline(capacity, color="black", linewidth=0.8, linestyle="--")
        axes.set(xlabel="hours", ylabel="accelerators in use", title=title, ylim=(0, capacity * 1.05))
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
