"""The entry point: fast help, sentences and exit codes instead of tracebacks."""

import errno
import importlib
import subprocess
import sys
import time

import pytest

from mlops.cli.main import COMMANDS


def run_mlops(*arguments: str, folder: str = ".") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlops.cli", *arguments], capture_output=True, text=True, check=False, cwd=folder
    )


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from mlops.cli.main import mlops;"
        "result = CliRunner().invoke(mlops, ['--help']); print(result.output);"
        "heavy = {'torch','ray','mlflow','dvc','pandas','sqlalchemy','numpy','pyarrow','optuna'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert name in done.stdout


def test_help_is_fast() -> None:
    """The issue's half second, with room for a busy machine: the best of five."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        assert run_mlops("--help").returncode == 0
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1.0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_and_has_help(name: str) -> None:
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert command.name == name
    assert command.help


def test_outside_a_project_there_is_one_sentence(tmp_path) -> None:
    done = run_mlops("release", "income", folder=str(tmp_path))
    assert done.returncode == 2
    assert "not inside a project" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_command_is_a_usage_error() -> None:
    done = run_mlops("bake")
    assert done.returncode == 2
    assert "bake" in done.stderr


@pytest.mark.parametrize(("number", "said"), [(errno.EROFS, "Read-only file system"), (errno.ENOSPC, "disk is full")])
def test_a_disk_that_cannot_be_written_is_no_bug_of_ours(number: int, said: str) -> None:
    code = (
        "import os, sys, click; from mlops.cli import main;"
        f"error = OSError({number}, os.strerror({number}), '/data/x');"
        "main.COMMANDS['erasure'] = ('broken:erasure', '');"
        "broken = sys.modules['broken'] = type(sys)('broken');"
        "broken.erasure = click.Command('erasure', callback=lambda: (_ for _ in ()).throw(error));"
        "sys.argv = ['mlops', 'erasure']; main.run()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    assert said in done.stderr and "/data/x" in done.stderr and "hint: " in done.stderr
