"""`mlops restore`: a backup back into a project, without who withdrew. Leaves doing so to mlops/overview/restore.py."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from mlops.cli.backup import read_passphrase
from mlops.cli.rendering import emit_json, refuse
from mlops.errors import Refusal


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--passphrase-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Default: asked for."
)
@click.option("--replace", "is_replacing", is_flag=True, help="Give up the project's own history for the backup's.")
@click.option("--dry-run", is_flag=True, help="Open and examine the backup only.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def restore(file: Path, passphrase_file: Path | None, *, is_replacing: bool, dry_run: bool, as_json: bool) -> None:
    """Put the backup FILE into this project; nothing serves before withdrawals are applied again.

    People who withdrew after the backup was made stay withdrawn: what the backup brings back of them is purged.
    """
    from mlops.erasure.reapplying import reapply_withdrawals  # heavy: DVC, SQLAlchemy
    from mlops.overview.restore import restore_backup
    from mlops.project.opening import open_project

    done = restore_backup(
        open_project(),
        file,
        passphrase=read_passphrase(passphrase_file, is_new=False),
        is_replacing=is_replacing,
        reapply=reapply_withdrawals,
        say=(lambda line: None) if as_json else click.echo,
        is_dry_run=dry_run,
    )
    if isinstance(done, Refusal):
        refuse(done, what=f"{file} is not restored")
    if as_json:
        emit_json(asdict(done))
        return
    for line in done.lines:
        click.echo(f"  {line}")
    if dry_run:
        click.echo(f"{file} of {done.made_at} is whole: {done.files} files")
        return
    click.echo(f"restored the state of {done.made_at}: {done.files} files; {done.withdrawals} people are withdrawn")
    click.echo("next: mlops dataset import NAME (rows are not in a backup), mlops deploy status, mlops doctor")
