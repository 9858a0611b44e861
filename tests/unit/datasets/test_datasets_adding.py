"""Lengthening the list of files in a recipe as a person would: nothing else of the text changes."""

import pytest

from mlops.datasets.adding import insert_files
from mlops.errors import DatasetError

SHAPES = {
    "a block of blocks with comments": (
        "source:\n  files:\n    - path: a.csv # old\n      skip_lines: 1\n\n# about the format\nformat: x\n",
        '      skip_lines: 1\n    - {path: "b c.csv"}\n\n# about',
    ),
    "a block of flow mappings": (
        "source:\n  files:\n  - {path: a.csv} # old\n  kind: files\n",
        '  - {path: a.csv} # old\n  - {path: "b c.csv"}\n  kind: files\n',
    ),
    "a flow list": ("source: {files: [{path: a.csv}], kind: files}\n", '[{path: a.csv}, {path: "b c.csv"}], kind'),
    "a flow list over lines": ("source:\n  files: [\n    {path: a.csv},\n  ]\n", '{path: a.csv}, {path: "b c.csv"}]'),
    "no newline at the end": ("source:\n  files:\n    - path: a.csv", '    - path: a.csv\n    - {path: "b c.csv"}\n'),
}


@pytest.mark.parametrize(("text", "part"), SHAPES.values(), ids=SHAPES)
def test_files_are_added_at_the_end(text, part):
    assert part in insert_files(text, ["b c.csv"], source="recipe")


@pytest.mark.parametrize("text", ["source: {kind: files}\n", "source: &a\n  files: []\n", "[]", ""])
def test_what_cannot_be_continued_is_left_to_a_person(text):
    with pytest.raises(DatasetError, match="cannot be continued"):
        insert_files(text, ["b.csv"], source="recipe")
