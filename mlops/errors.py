"""What can go wrong, as types: a message says what, where and what to do next; the type gives the exit code.

A *no* of the machine (gate, budget, approval) is not an error: it is a returned `Refusal`.
Leaves to others: printing (mlops/cli) and the wording of each fault (the room that finds it).
"""

from __future__ import annotations

from dataclasses import dataclass

EXIT_DONE = 0
EXIT_REFUSED = 1
EXIT_BUG = 70


class MlopsError(Exception):
    """A fault that stops the command.

    Args:
        message: What went wrong and where, one sentence.
        hint: What to do next, one sentence or command; may be empty.
        items: The offending things, one line each.
    """

    exit_code = EXIT_BUG

    def __init__(self, message: str, *, hint: str = "", items: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.items = items


class ProjectError(MlopsError):
    """A project file or an argument is wrong: unknown product, malformed YAML, a field that does not exist."""

    exit_code = 2


class DatasetError(MlopsError):
    """Data is missing, changed or not what `dataset.yaml` says."""

    exit_code = 3


class TrainingError(MlopsError):
    """A trainer, a sweep or a worker group failed."""

    exit_code = 4


class EvaluationError(MlopsError):
    """The gate itself could not run (a check that cannot be evaluated is a verdict, not an error)."""

    exit_code = 5


class ProvenanceError(MlopsError):
    """A digest, a signature or a link of the chain does not hold, or the registry cannot be used."""

    exit_code = 6


class ServingError(MlopsError):
    """An image, a registry or a running version failed."""

    exit_code = 7


class LedgerError(MlopsError):
    """The ledger or a budget cannot be read or written."""

    exit_code = 8


class LedgerUnreachable(LedgerError):  # noqa: N818 - as EnvironmentFault
    """The connection to the ledger failed; whether the last change was kept is not known. Trying later may help."""


class EnvironmentFault(MlopsError):  # noqa: N818 - OSError has an alias of the better name
    """The machine lacks something: a system tool, a free port, disk space, a Ray cluster."""

    exit_code = 9


@dataclass(frozen=True)
class Reason:
    """One machine-readable ground of a decision."""

    code: str
    """Stable, kebab-case: `cap-exceeded`, `approval-expired`."""
    text: str
    """One sentence for people: what, where, what to do."""


@dataclass(frozen=True)
class Refusal:
    """A *no*, with every ground for it. Commands that end in one exit with 1."""

    reasons: tuple[Reason, ...]

    def render_text(self) -> str:
        """One line per ground."""
        return "\n".join(f"{reason.code}: {reason.text}" for reason in self.reasons)
