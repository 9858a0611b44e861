"""What a batch needs done outside the dataset: training, serving, purging. Tests have a fake of the same interface.

Leaves to others: the order of it (running.py), doing it (project_work.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from mlops.erasure.retraining import ReleasedVersion, Retrained
from mlops.erasure.rollout import Move
from mlops.errors import Refusal

if TYPE_CHECKING:
    from mlops.erasure.affected import AffectedModel  # reads images and desired states; see below
    from mlops.erasure.purging import Receipt  # brings MLflow and the image stores; the order of steps needs neither

People = frozenset[tuple[str, bytes]]
"""(dataset, keyed hash)."""


class Work(Protocol):
    """Everything of one dataset's products."""

    def list_newest(self) -> tuple[ReleasedVersion, ...]:
        """The newest released version of each product that was ever released."""
        ...

    def is_made_from(self, released: ReleasedVersion, people: People) -> bool:
        """Whether people, or data purged since, stand behind a version."""
        ...

    def list_made_from(self, subjects: frozenset[bytes]) -> tuple[AffectedModel, ...]:
        """Every registered model version that was trained on people, not only the newest."""
        ...

    def retrain(self, released: ReleasedVersion, withdrawn: frozenset[bytes]) -> Retrained | Refusal:
        """Train again with the released parameters; done again, it goes on."""
        ...

    def roll_out(self, numbers: Mapping[str, int], people: People, *, is_due: bool) -> tuple[Move, ...]:
        """Move every environment away from versions made from people; see `mlops.erasure.rollout.roll_out`."""
        ...

    def purge(self, subjects: frozenset[bytes]) -> tuple[Receipt, ...]:
        """Remove what was made from people from every store."""
        ...
