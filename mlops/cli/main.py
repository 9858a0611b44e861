"""`mlops`: finds the command's module by name and turns errors into sentences and exit codes.

Command modules are imported when they are called, so that `mlops --help` stays fast.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
import traceback
from pathlib import Path

import click

from mlops import __version__
from mlops.errors import EXIT_BUG, EXIT_DONE, EnvironmentFault, MlopsError, ProjectError
from mlops.places import Places, find_root

COMMANDS: dict[str, tuple[str, str]] = {
    # name: (module:attribute, one line of help)
    "init": ("mlops.cli.init:init", "Write a new project."),
    "doctor": ("mlops.cli.doctor:doctor", "Say what is missing or broken, and how to mend it."),
    "release": ("mlops.cli.release:release", "Bake a product: data, sweep, export, gate, register, image, probe."),
    "status": ("mlops.cli.status:status", "Everything that matters, on one screen."),
    "ui": ("mlops.cli.ui:ui", "Open the MLflow UI on 127.0.0.1."),
    "stop": ("mlops.cli.stop:stop", "Stop the local Ray that earlier commands started."),
    "dataset": ("mlops.cli.dataset:dataset", "Import, list, show and verify dataset versions."),
    "trainer": ("mlops.cli.trainer:trainer", "Check a trainer, or run one trial by hand."),
    "sweep": ("mlops.cli.sweep:sweep", "Launch, list, show, stop and resume sweeps."),
    "budget": ("mlops.cli.budget:budget", "Show and set budgets; forecast and simulate."),
    "gate": ("mlops.cli.gate:gate", "Run the evaluation gate and show its verdicts."),
    "model": ("mlops.cli.model:model", "List, show and explain registered model versions."),
    "image": ("mlops.cli.image:image", "Build, list, verify, probe and run serving images."),
    "approve": ("mlops.cli.approve:approve", "Sign an approval for a model version and an environment."),
    "promote": ("mlops.cli.promote:promote", "Move an environment to a model version, on evidence."),
    "rollback": ("mlops.cli.rollback:rollback", "Move an environment back to the last known good version."),
    "deploy": ("mlops.cli.deploy:deploy", "Serve the desired state; show and render it."),
    "incident": ("mlops.cli.incident:incident", "Open, list and close incidents."),
    "report": ("mlops.cli.report:report", "Write a page about a product that anybody can read."),
    "metrics": ("mlops.cli.metrics:metrics", "Print the status as Prometheus text."),
    "erasure": ("mlops.cli.erasure:erasure", "Forget people: requests, batches, certificates."),
    "trace": ("mlops.cli.trace:trace", "Walk back from a version to everything it was made of."),
    "audit": ("mlops.cli.audit:audit", "Verify signatures and digests of a chain."),
    "rebuild": ("mlops.cli.rebuild:rebuild", "Rebuild a release from its attestations and compare digests."),
    "schedule": ("mlops.cli.schedule:schedule", "Print the cron line, timer and workflow for what runs by itself."),
    "backup": ("mlops.cli.backup:backup", "Write everything that cannot be rebuilt to one encrypted file."),
    "restore": ("mlops.cli.restore:restore", "Put a backup back, without anybody who withdrew since."),
    "keys": ("mlops.cli.keys:keys", "Make and list signing keys."),
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when used; the help needs no import."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mlops")
def mlops() -> None:
    """Bakes releases of machine-learning products.

    Exit codes: 0 done, 1 refused with reasons, 2-9 a fault (by family), 70 a bug of ours.
    """


def run() -> None:
    """Entry point of the `mlops` command."""
    # onnxruntime >= 1.29 reports home unless this stands in the environment before it is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    with contextlib.suppress(ProjectError):  # not inside one: nothing is drawn there
        cache = Places(find_root(Path.cwd())).cache
        os.environ.setdefault(
            "MPLCONFIGDIR", str(cache / "matplotlib")
        )  # else its list of fonts goes to the home folder
    try:
        code = mlops(standalone_mode=False)  # click returns the code of an `Exit` here instead of raising it
        sys.exit(code if isinstance(code, int) else EXIT_DONE)
    except click.Abort:
        click.echo("interrupted; run the same command again to go on", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MlopsError as error:
        render_error(error)
        sys.exit(error.exit_code)
    except Exception as error:  # the last net: a bug of ours, said as such
        fault = _find_fault(error)
        if fault is not None:
            render_error(fault)
            sys.exit(fault.exit_code)
        traceback.print_exc()
        click.echo("this is a bug in mlops; please report it with the lines above", err=True)
        sys.exit(EXIT_BUG)


def _find_fault(error: Exception) -> EnvironmentFault | None:
    """What the machine lacks, also when a library says so."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return EnvironmentFault(f"the disk is full: {error}", hint="free space and run the command again")
    if isinstance(error, OSError) and error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
        hint = "mend the rights, or mount the disk writable, and run the command again"
        return EnvironmentFault(f"this user may not read or write there: {error}", hint=hint)
    return None


def render_error(error: MlopsError) -> None:
    """What, where, what to do."""
    click.echo(f"error: {error.message}", err=True)
    for item in error.items:
        click.echo(f"  - {item}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)
