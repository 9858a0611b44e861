"""Services that call a model, and the contract each relies on: `deploy/consumers/<service>.yaml`.

Leaves to others: the contract that a candidate offers (`contract.json`, mlops/training), and refusing on a broken one
(promotion.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from mlops.errors import MlopsError, ProjectError
from mlops.places import Places
from mlops.provenance.digest import digest_json
from mlops.specs import Spec, load_spec


class ConsumedInput(Spec):
    """A column that the service sends."""

    name: str
    dtype: Literal["float32", "int64", "string"]
    """As sent; `string` means category names, which the server maps to codes."""
    values: tuple[str, ...] = ()
    """Category names that the service may send; each must stay known."""
    minimum: float | None = None
    maximum: float | None = None


class ConsumedOutput(Spec):
    """An output that the service reads."""

    name: str
    dtype: Literal["float32", "int64"] = "float32"


class ConsumerSpec(Spec):
    """One service."""

    version: Literal[1]
    service: str = Field(pattern=r"^[a-z][a-z0-9-]{0,60}$")
    release: str = Field(min_length=1)
    """Version of the service itself; pinned together with the model."""
    product: str
    environments: tuple[str, ...] = Field(min_length=1)
    """Where this release of the service runs."""
    inputs: tuple[ConsumedInput, ...] = Field(min_length=1)
    outputs: tuple[ConsumedOutput, ...] = Field(min_length=1)
    classes: tuple[str, ...] = ()
    """Class names in the order in which the service reads probabilities; empty when it does not care."""

    @property
    def contract_digest(self) -> str:
        """Digest of what it relies on."""
        return digest_json(self.model_dump(mode="json", exclude={"release", "environments"}))


def load_consumers(places: Places, *, product: str, environment: str) -> tuple[ConsumerSpec, ...]:
    """Services that call `product` in `environment`, by name.

    Raises:
        ProjectError: Files have problems; those of every file are listed at once.
    """
    problems: list[str] = []
    found: list[ConsumerSpec] = []
    for path in sorted((places.root / "deploy" / "consumers").glob("*.yaml")):
        try:
            spec = load_spec(path, ConsumerSpec)
        except MlopsError as error:
            problems.extend(error.items or (error.message,))
            continue
        if spec.service != path.stem:
            problems.append(f"{path}: service: must be {path.stem!r}, as the file is called")
        found.append(spec)
    if problems:
        raise ProjectError(
            f"deploy/consumers has {len(problems)} problem{'s' if len(problems) > 1 else ''}", items=tuple(problems)
        )
    return tuple(spec for spec in found if spec.product == product and environment in spec.environments)


def find_contract_problems(consumer: ConsumerSpec, contract: Mapping[str, Any]) -> tuple[str, ...]:
    """What the model's contract does not give this service; empty when it is kept.

    A model may take fewer values than it offers to take, never fewer than a service sends: every sent value must stay
    known, every sent range accepted, every required input sent, every read output present.

    Args:
        consumer: The service.
        contract: Content of the candidate's `contract.json`.
    """
    offered = {str(entry["name"]): entry for entry in contract["inputs"]}
    sent = {entry.name: entry for entry in consumer.inputs}
    problems = [f"sends {name}, which the model does not take" for name in sent if name not in offered]
    problems += [f"does not send {name}, which the model needs" for name in offered if name not in sent]
    for name in sent.keys() & offered.keys():
        problems += _find_input_problems(sent[name], offered[name])
    outputs = {str(entry["name"]): str(entry["dtype"]) for entry in contract["outputs"]}
    for output in consumer.outputs:
        if output.name not in outputs:
            problems.append(f"reads {output.name}, which the model does not answer")
        elif outputs[output.name] != output.dtype:
            problems.append(f"reads {output.name} as {output.dtype}, the model answers {outputs[output.name]}")
    classes = tuple(str(name) for name in contract.get("classes", ()))
    if consumer.classes and consumer.classes != classes:
        problems.append(f"reads classes {list(consumer.classes)}, the model answers {list(classes)}")
    return tuple(sorted(problems))


def _find_input_problems(sent: ConsumedInput, offered: Mapping[str, Any]) -> Iterable[str]:
    categories: Sequence[str] = tuple(str(name) for name in offered.get("categories") or ())
    if sent.dtype == "string":
        if not categories:
            yield f"sends {sent.name} as names, the model takes {offered['dtype']}"
            return
        unknown = [value for value in sent.values if value not in categories]
        if unknown:
            yield f"sends {sent.name} = {', '.join(unknown)}, which the model does not know"
        return
    if sent.dtype != offered["dtype"]:
        yield f"sends {sent.name} as {sent.dtype}, the model takes {offered['dtype']}"
    lowest, highest = offered.get("minimum"), offered.get("maximum")
    if sent.minimum is not None and lowest is not None and sent.minimum < lowest:
        yield f"sends {sent.name} down to {sent.minimum:g}, the model takes it down to {lowest:g}"
    if sent.maximum is not None and highest is not None and sent.maximum > highest:
        yield f"sends {sent.name} up to {sent.maximum:g}, the model takes it up to {highest:g}"
