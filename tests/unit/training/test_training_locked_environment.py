"""A worker compares what is installed with the driver's lock."""

import pytest

from mlops.training.locked_environment import digest_environment, explain_difference, read_pins

LOCK = """\
# Made by 'make lock'
Torch==2.13.0
ray[default]==2.60.0    # via x
foo.bar==1.0
pywin32==3 ; sys_platform == 'win32'
--extra-index-url somewhere
"""


def test_pins_are_the_exact_lines_that_hold_here():
    assert read_pins(LOCK) == {"torch": "2.13.0", "ray": "2.60.0", "foo-bar": "1.0"}


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        ({"torch": "2.13.0+cpu", "ray": "2.60.0", "foo-bar": "1.0", "more": "1"}, ""),
        ({"torch": "2.12.0", "ray": "2.60.0", "foo-bar": "1.0"}, ": torch 2.12.0 instead of 2.13.0"),
        ({"torch": "2.13.0", "ray": "2.60.0"}, ": foo-bar is missing instead of 1.0"),
    ],
)
def test_what_differs_is_named_and_other_builds_or_other_packages_do_not_differ(installed, words):
    said = explain_difference(read_pins(LOCK), find_version=installed.get)
    assert said.endswith(words)
    assert bool(said) == bool(words)


def test_only_the_first_differences_are_named():
    said = explain_difference({f"p{n}": "1" for n in range(9)}, find_version=lambda name: "2")
    assert "p0 2 instead of 1, p1 2 instead of 1, p2 2 instead of 1 and 6 more" in said


def test_the_digest_is_of_names_and_versions():
    assert digest_environment({"a": "1", "b": "2"}) == digest_environment({"b": "2+cpu", "a": "1"})
    assert digest_environment({"a": "1"}) != digest_environment({"a": "2"})
