"""`mlops backup`: one sealed file with all that cannot be rebuilt. Leaves writing it to mlops/overview/backup.py."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mlops.cli.rendering import emit_json, render_table
from mlops.errors import ProjectError


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--passphrase-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Default: asked for."
)
@click.option("--dry-run", is_flag=True, help="Say what would be in it.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def backup(file: Path, passphrase_file: Path | None, *, dry_run: bool, as_json: bool) -> None:
    """Write ledger, MLflow, images, models, evidence, keys and withdrawals to FILE, encrypted."""
    from mlops.overview.backup import plan_backup, write_backup  # heavy: SQLAlchemy
    from mlops.project.opening import open_project

    project = open_project()
    if dry_run:
        parts = plan_backup(project)
        if as_json:
            emit_json(dict(parts))
        else:
            click.echo(render_table(("PART", "SIZE"), [(name, f"{size / 1e6:.1f} MB") for name, size in parts]))
        return
    passphrase = read_passphrase(passphrase_file, is_new=True)
    say = (lambda line: None) if as_json else click.echo
    done = write_backup(project, file, passphrase=passphrase, say=say)
    if as_json:
        emit_json({"path": done.path, "bytes": done.bytes, "files": done.files, "notes": list(done.notes)})
        return
    click.echo(f"wrote {done.path}: {done.files} files, {done.bytes / 1e6:.1f} MB")
    for note in done.notes:
        click.echo(f"  note: {note}")
    click.echo(f"try it out: mlops restore {done.path} --dry-run")


def read_passphrase(file: Path | None, *, is_new: bool) -> str:
    """From a file's first line, or typed; never an argument, which other users of the machine could read.

    Raises:
        ProjectError: There is no terminal to type it at.
    """
    if file is not None:
        lines = file.read_text(encoding="utf-8").splitlines()
        return lines[0].strip() if lines else ""
    if not sys.stdin.isatty():
        raise ProjectError(
            "there is no terminal to ask for the passphrase at", hint="give it by --passphrase-file FILE"
        )
    typed: str = click.prompt("Passphrase", hide_input=True, confirmation_prompt=is_new, err=True)
    return typed
