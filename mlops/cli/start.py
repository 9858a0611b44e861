"""Where the `mlops` command starts: a rollback moves traffic first, everything else waits for its imports.

Leaves to others: the commands (mlops/cli/main.py).
"""

import sys


def run() -> None:
    """Entry point of the `mlops` command."""
    if sys.argv[1:2] == ["rollback"]:
        from mlops.deploy.first_move import move_traffic  # imports next to nothing, so it acts within milliseconds

        moved = move_traffic(sys.argv[1:])
        if moved is not None:
            sys.argv += ["--moved", moved]
    from mlops.cli.main import run as run_command  # click and all it takes
    from mlops.processes import collect_less

    collect_less()
    run_command()
