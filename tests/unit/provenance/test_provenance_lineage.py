"""References and what they lead to."""

from __future__ import annotations

from typing import Any

import pytest

from mlops.errors import ProjectError, ProvenanceError
from mlops.provenance.digest import digest_bytes
from mlops.provenance.lineage import find_starts, walk_back, walk_forward
from mlops.provenance.reference import Reference, parse_reference

FORMS = {
    "sha256:" + "0" * 64: ("digest", "sha256:" + "0" * 64, None),
    "sha256:01234567": ("digest", "sha256:01234567", None),
    "income@12": ("version", "income", "12"),
    "income@latest": ("version", "income", "latest"),
    "production": ("environment", "production", None),
    "run:0a1b": ("run", "0a1b", None),
    "dataset:income": ("dataset", "income", None),
    "dataset:income@sha256:01": ("dataset", "income", "sha256:01"),
    "commit:0123abc": ("commit", "0123abc", None),
}


@pytest.mark.parametrize("text", FORMS)
def test_every_form_is_parsed_and_written_back(text: str) -> None:
    reference = parse_reference(text)
    assert (reference.kind, reference.name, reference.selector) == FORMS[text]
    assert str(reference) == text


@pytest.mark.parametrize(
    "text", ["", "@", "income@", "sha256:XYZ", "sha256:0123", "run:", "commit:xyz", "a b", "../x", "income@1@2", "-x"]
)
def test_what_is_no_reference_names_the_forms(text: str) -> None:
    with pytest.raises(ProjectError) as caught:
        parse_reference(text)
    assert "PRODUCT@NUMBER" in caught.value.hint


def start_of(chain: Any, text: str) -> tuple[str, ...]:
    with chain.ledger.read() as connection:
        served = {"production": (chain.image,)}
        return find_starts(connection, parse_reference(text), find_served=lambda name: served.get(name, ()))


def test_each_reference_leads_to_its_digest(chain: Any) -> None:
    outputs = {kind: next(iter(chain.step(kind).outputs.values())) for kind in ("sweep", "registration", "image")}
    manifest = chain.step("dataset-import").outputs["manifest"]
    assert start_of(chain, "income@1") == start_of(chain, "income@latest") == (outputs["registration"],)
    assert start_of(chain, "production") == start_of(chain, outputs["image"][:20]) == (outputs["image"],)
    assert start_of(chain, "run:run1") == start_of(chain, "run:sweep-1") == (outputs["sweep"],)
    assert start_of(chain, "commit:0123456") == (outputs["sweep"],)
    assert start_of(chain, "dataset:income") == start_of(chain, f"dataset:income@{manifest[:20]}") == (manifest,)


@pytest.mark.parametrize(
    "text",
    ["income@2", "income@production", "staging", "run:nope", "dataset:digits", "commit:fffffff", "sha256:ffffffff"],
)
def test_an_unknown_name_is_said_to_be_unknown(chain: Any, text: str) -> None:
    with pytest.raises(ProvenanceError, match="nothing is known of"):
        start_of(chain, text)


def test_a_version_number_is_a_number_however_it_is_written() -> None:
    assert Reference("version", "income", "007").number == 7


def test_back_from_the_image_is_everything_and_forward_from_the_data_too(chain: Any) -> None:
    kinds = {"dataset-import", "sweep", "export", "gate", "registration", "image"}
    with chain.ledger.read() as connection:
        assert {step.kind for step in walk_back(connection, [chain.image]).steps} == kinds
        manifest = chain.step("dataset-import").outputs["manifest"]
        assert {step.kind for step in walk_forward(connection, [manifest])} == kinds - {"dataset-import"}


def test_the_maker_is_the_last_one_before_the_use(chain: Any) -> None:
    """A sweep that is run again later and gives the same weights is not where an earlier candidate came from."""
    first = chain.step("sweep")
    later = chain.record("sweep", {**first.inputs, "code": digest_bytes(b"new")}, first.outputs, commit="fedcba9876")
    export = chain.step("export")
    with chain.ledger.read() as connection:
        lineage = walk_back(connection, [chain.image])
        assert lineage.find_maker(first.outputs["weights"], consumer=export) == first
        assert walk_back(connection, [first.outputs["weights"]]).steps[0] == later


def test_a_step_that_uses_what_it_makes_is_not_walked_in_circles(chain: Any) -> None:
    digest = digest_bytes(b"unchanged")
    chain.record("clean", {"data": digest}, {"data": digest})
    with chain.ledger.read() as connection:
        assert [step.kind for step in walk_back(connection, [digest]).steps] == ["clean"]
        assert [step.kind for step in walk_forward(connection, [digest])] == ["clean"]
