"""Subject ids from standard input, which no other user of the machine can see. Leaves hashing to mlops/datasets."""

from __future__ import annotations

import sys

import click

from mlops.errors import ProjectError


def read_ids() -> list[str]:
    """Ids, one a line, without blank lines and the mark that some editors write before the first one.

    Raises:
        ProjectError: They are not UTF-8. An id that was misread would be that of nobody, and nobody would notice.
    """
    if sys.stdin.isatty():
        click.echo("subject ids, one a line; end with Ctrl-D", err=True)
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ProjectError(
            f"standard input is not UTF-8 text: line {line}", hint="convert it, for instance by `iconv -t UTF-8`"
        ) from None
    return [line.strip() for line in text.splitlines() if line.strip()]
