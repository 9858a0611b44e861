"""What every process of ours sets before it loads large libraries.

Leaves to others: starting processes (mlops/training/process_group, mlops/training/ray_cluster and their like).
"""

import atexit
import gc

_COLLECT_AFTER = (50_000, 20, 20)
"""Objects made, and younger collections done. Python's 700 and 10 search for garbage where there is none yet: a fifth
of the time in which torch, mlflow and the like load."""


def collect_less() -> None:
    """Let the garbage collector of this process run less often, and not at its end.

    The system takes the memory of a process that ends whole. Python would first take half a million objects of torch,
    mlflow and ray apart, which takes 2 s. What is registered to run at the end runs before.
    """
    gc.set_threshold(*_COLLECT_AFTER)
    atexit.register(gc.freeze)
