"""Project files: every problem at once, with file, line and field."""

from pathlib import Path

import pytest
from pydantic import Field

from mlops.errors import ProjectError
from mlops.specs import Spec, load_spec, parse_spec
from mlops.units import Accelerators, Duration, Money


class Inner(Spec):
    price: Money
    window: Duration


class Outer(Spec):
    version: int
    shape: Accelerators
    parts: tuple[Inner, ...] = ()


GOOD = "version: 1\nshape: 2xh100\nparts:\n  - price: 2000 USD\n    window: 2h\n"


def test_a_good_file_becomes_a_frozen_value() -> None:
    spec = parse_spec(GOOD, Outer, source="good.yaml")
    assert spec.parts[0].price == 2_000_000_000
    assert spec.parts[0].window == 7200.0
    assert spec.shape == Accelerators(kind="h100", count=2)
    with pytest.raises(ValueError, match="frozen"):
        spec.version = 2


def test_five_problems_are_five_lines_with_file_line_and_field() -> None:
    text = "shape: 2.5xh100\ncolour: red\nparts:\n  - price: lots\n    window: 2 fortnights\n"
    with pytest.raises(ProjectError) as raised:
        parse_spec(text, Outer, source="bad.yaml")
    items = raised.value.items
    assert len(items) == 5
    assert any(item.startswith("bad.yaml:1: shape: ") and "cannot be divided" in item for item in items)
    assert "bad.yaml:2: colour: unknown field" in items
    assert any(item.startswith("bad.yaml:4: parts.0.price: ") and "2000 USD" in item for item in items)
    assert any(item.startswith("bad.yaml:5: parts.0.window: ") for item in items)
    assert any(item.endswith("version: is required") for item in items)


def test_a_value_that_no_member_of_a_union_takes_is_one_line() -> None:
    class Shelf(Spec):
        books: tuple[int | bool, ...] = Field(min_length=1)

    with pytest.raises(ProjectError) as raised:
        parse_spec("books:\n  - [1]\n", Shelf, source="bad.yaml")
    assert raised.value.items == ("bad.yaml:2: books.0: Input should be a valid integer or a valid boolean",)


CASES = {
    "a broken line is named": ("version: [1\n", "not valid YAML"),
    "a key that stands twice is refused": ("version: 1\nversion: 2\nshape: 1xcpu\n", "names a key twice"),
    "a python object is never built": ("version: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    "a date that no calendar has": (
        "version: 1\nparts:\n  - {from: 2026-01-01}\n  - {from: 2026-13-01}\n",
        "yaml:4: no such date",
    ),
    "an empty file lacks its fields": ("", "problem"),
}


@pytest.mark.parametrize(("text", "part"), CASES.values(), ids=CASES.keys())
def test_bad_files(text: str, part: str) -> None:
    with pytest.raises(ProjectError, match=part):
        parse_spec(text, Outer, source="x.yaml")


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=r"absent\.yaml does not exist"):
        load_spec(tmp_path / "absent.yaml", Outer)
