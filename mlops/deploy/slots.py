"""Occupied slots of one served product, as runtime, proxy and notes show them.

What runs is read from the runtime, what gets traffic from the proxy; the only note kept on disk is that an instance
passed its check. Leaves to others: what to do about it (reconcile_plan.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlops.deploy import traffic_switch
from mlops.deploy.environment import SLOTS
from mlops.deploy.instance_check import is_ready
from mlops.deploy.proxy_haproxy import Proxy
from mlops.deploy.reconcile_plan import SlotView
from mlops.files import write_atomically
from mlops.serving.runtime import Instance, Runtime


@dataclass(frozen=True)
class SlotTable:
    """The slots of one product in one environment."""

    folder: Path
    prefix: str
    """Instance names are `<prefix>.<slot>`."""
    runtime: Runtime
    proxy: Proxy
    failures: dict[str, int] = field(default_factory=dict)
    """Identity of an instance to its failed health checks in a row."""

    def instance_name(self, slot: int) -> str:
        """Name of the instance in a slot."""
        return f"{self.prefix}.{slot}"

    def load_instances(self) -> dict[int, Instance]:
        """What runs, by slot."""
        names = {self.instance_name(slot): slot for slot in range(SLOTS)}
        return {names[instance.name]: instance for instance in self.runtime.list_instances() if instance.name in names}

    def observe(self, instances: Mapping[int, Instance], *, tolerated_failures: int) -> tuple[SlotView, ...]:
        """Every occupied slot; asks each checked instance whether it is ready."""
        traffic = self.proxy.load_traffic()
        views: list[SlotView] = []
        for slot in range(SLOTS):
            instance, note, seen = instances.get(slot), self._read_note(slot), traffic[slot]
            if instance is None:
                if note is not None or seen.is_attached:
                    image = note["image"] if note else ""
                    views.append(SlotView(slot, image, False, False, False, seen.weight, seen.is_attached))
                continue
            is_checked = note is not None and note["identity"] == instance.identity
            if is_checked:
                self._count_failure(instance)
            is_healthy = self.failures.get(instance.identity, 0) < tolerated_failures
            weight = seen.weight if seen.is_attached else 0
            views.append(SlotView(slot, instance.digest, True, is_checked, is_healthy, weight, seen.is_attached))
        return tuple(views)

    def is_any_failing(self, *, tolerated_failures: int) -> bool:
        """Whether an instance failed a check but not yet too often."""
        return any(0 < count < tolerated_failures for count in self.failures.values())

    def note_checked(self, slot: int, instance: Instance) -> None:
        """The instance passed its check."""
        note = {"image": instance.digest, "identity": instance.identity}
        write_atomically(self._note_file(slot), json.dumps(note, sort_keys=True))

    def forget(self, slot: int) -> None:
        """Nobody is in the slot any more."""
        with traffic_switch.locked(self.folder):
            self.proxy.disable_slot(slot)
        self.drop_note(slot)

    def drop_note(self, slot: int) -> None:
        """Remove what is kept of an instance that is gone."""
        self._note_file(slot).unlink(missing_ok=True)
        (traffic_switch.slot_folder(self.folder, slot) / "server.sock").unlink(missing_ok=True)

    def _count_failure(self, instance: Instance) -> None:
        if is_ready(instance.socket):
            self.failures.pop(instance.identity, None)
        else:
            self.failures[instance.identity] = self.failures.get(instance.identity, 0) + 1

    def _note_file(self, slot: int) -> Path:
        return self.folder / "slots" / f"{slot}.json"

    def _read_note(self, slot: int) -> dict[str, str] | None:
        try:
            note: dict[str, str] = json.loads(self._note_file(slot).read_bytes())
        except (OSError, ValueError):
            return None
        return note
