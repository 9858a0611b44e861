"""Which runtime this machine uses: the first of an environment's list that is installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mlops.deploy import runtime_bubblewrap, runtime_podman
from mlops.errors import EnvironmentFault
from mlops.serving.runtime import Runtime
from mlops.serving.runtime_process import ProcessRuntime

_RUNTIMES: dict[str, tuple[Callable[[], bool], Callable[[Path], Runtime], str]] = {
    "podman": (runtime_podman.is_podman_installed, runtime_podman.PodmanRuntime, "podman runc"),
    "bubblewrap": (runtime_bubblewrap.is_bubblewrap_installed, runtime_bubblewrap.BubblewrapRuntime, "bubblewrap"),
    # Boots the image's own interpreter and server, but isolates nothing: for a machine without the tools above.
    "process": (lambda: True, lambda state: ProcessRuntime(state / "process"), ""),
}


def choose_runtime(names: Sequence[str], *, state: Path) -> Runtime:
    """The first installed runtime of `names`.

    Args:
        names: In order of preference.
        state: `places.serving_state`.

    Raises:
        EnvironmentFault: None of them is installed; the hint is the install command.
    """
    for name in names:
        is_installed, make, _ = _RUNTIMES[name]
        if is_installed():
            return make(state)
    packages = _RUNTIMES[names[0]][2]
    raise EnvironmentFault(
        f"no OCI runtime is installed (looked for {', '.join(names)})", hint=f"run `apt-get install {packages}`"
    )


def list_runtimes(state: Path) -> tuple[Runtime, ...]:
    """Every runtime that is installed, whichever an environment uses: each may keep copies of images.

    Args:
        state: `places.serving_state`.
    """
    return tuple(make(state) for is_installed, make, _ in _RUNTIMES.values() if is_installed())
