"""What every command prints alike: JSON, refusals, plain tables. Leaves to others: what stands in them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from mlops.errors import EXIT_REFUSED, Refusal


class _Picture(click.Path):
    """A picture that can be written, said before the work whose result it shows."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(str(super().convert(value, param, ctx)))
        if path.suffix not in {".svg", ".png"}:
            self.fail(f"{path}: the file must end in .svg or .png", param, ctx)
        if not path.parent.is_dir():
            self.fail(f"{path}: there is no folder {path.parent}", param, ctx)
        return path


PICTURE = _Picture(dir_okay=False, writable=True)


def emit_json(value: Any) -> None:
    """Print a value as indented JSON with sorted keys."""
    click.echo(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=str))


def refuse(refusal: Refusal, *, what: str) -> NoReturn:
    """Print every ground of a *no* and end with exit code 1."""
    click.echo(f"refused: {what}", err=True)
    for reason in refusal.reasons:
        click.echo(f"  - {reason.code}: {reason.text}", err=True)
    raise click.exceptions.Exit(EXIT_REFUSED)


def render_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Left-aligned plain columns, two spaces apart."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
