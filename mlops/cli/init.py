"""`mlops init`: write a new project. Leaves to others: what stands in it (mlops/project/scaffold.py)."""

from __future__ import annotations

from pathlib import Path

import click

from mlops.cli.rendering import emit_json


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path(), metavar="[DIR]")
@click.option("--name", "product", help="Name of the product; default: the folder's name.")
@click.option("--dry-run", is_flag=True, help="Only list the files that would be written.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
def init(folder: Path, *, product: str | None, dry_run: bool, is_json: bool) -> None:
    """Write a new project into DIR (default: here), ready for `mlops release`."""
    from mlops.project.scaffold import (  # pydantic: 0.2 s
        import_scaffold,
        plan_scaffold,
        remove_scaffold,
        write_scaffold,
    )

    root = folder.resolve()
    name = product or root.name.lower().replace("-", "_")
    if dry_run:
        files = tuple(plan_scaffold(root, product=name))
        if is_json:
            emit_json({"root": str(root), "product": name, "files": files})
        else:
            click.echo("\n".join(files))
        return
    scaffold = write_scaffold(root, product=name)
    try:
        digest = import_scaffold(scaffold)
    except BaseException:
        remove_scaffold(scaffold)
        raise
    if is_json:
        emit_json({"root": str(root), "product": name, "files": scaffold.files, "dataset_digest": digest})
        return
    click.echo(f"wrote {len(scaffold.files)} files of product {name} to {root}")
    click.echo(f"imported 8000 generated rows as dataset {name} ({digest[:19]}…)")
    click.echo("next:")
    if folder != Path():
        click.echo(f"  cd {folder}")
    if not any((parent / ".git").exists() for parent in (root, *root.parents)):
        click.echo("  git init")
    click.echo("  git add . && git commit -m 'Start'")
    click.echo("  mlops doctor")
    click.echo(f"  mlops release {name}")
