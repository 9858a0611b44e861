"""Looks at a product's code before money is spent: insecure calls, secrets, licences of the lock, state of the tree.

Leaves to others: whether the trainer trains (the trainer check), and known vulnerabilities of dependencies.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlops.errors import Reason, Refusal, TrainingError
from mlops.places import Places
from mlops.provenance.digest import digest_json
from mlops.provenance.git_repository import GitRepository
from mlops.training.source_licences import LockedDistribution, judge_licence, read_lock

_SECRET_PLUGINS = (
    # Not the entropy detectors: every digest in a project file looks random to them.
    "ArtifactoryDetector", "AWSKeyDetector", "AzureStorageKeyDetector", "BasicAuthDetector", "CloudantDetector",
    "DiscordBotTokenDetector", "GitHubTokenDetector", "GitLabTokenDetector", "JwtTokenDetector", "KeywordDetector",
    "MailchimpDetector", "NpmDetector", "OpenAIDetector", "PrivateKeyDetector", "PypiTokenDetector",
    "SendGridDetector", "SlackDetector", "StripeDetector", "TelegramBotTokenDetector", "TwilioKeyDetector",
)  # fmt: skip
_PUBLIC_LINE = re.compile(r"subject_key:\s*(\{\s*)?(public|secret):|\bed25519:")
"""Keys that are public, or only named, by the form of our own files."""
_SEARCHED = ("training", "evaluation", "budgets", "deploy", "notebooks", "datasets", ".github")
_SEARCHED_SUFFIXES = frozenset(
    {".py", ".yaml", ".yml", ".json", ".toml", ".ipynb", ".sh", ".cfg", ".ini", ".txt", ".env"}
)
_MAX_SEARCHED_BYTES = 1_000_000


@dataclass(frozen=True)
class Finding:
    """One thing in the source that a person should look at."""

    code: str
    """`insecure-code`, `syntax-error`, `secret`, `licence`, `lock-differs`, `lock-missing`."""
    path: str
    """Relative to the project."""
    line: int
    """From 1; 0 where a file as a whole is meant."""
    text: str
    is_blocking: bool

    def render(self) -> str:
        """`path:line: text`."""
        return f"{self.path}:{self.line}: {self.text}" if self.line else f"{self.path}: {self.text}"


@dataclass(frozen=True)
class SourceReport:
    """What was looked at and found; equal sources give equal reports."""

    product: str
    findings: tuple[Finding, ...]
    files_searched: int
    distributions: int

    @property
    def digest(self) -> str:
        """`sha256:…` of the report."""
        return digest_json(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """For the step's record and `--json`."""
        return asdict(self) | {"findings": [asdict(finding) for finding in self.findings]}

    def refusal(self) -> Refusal | None:
        """Every blocking finding as a reason, or None."""
        reasons = tuple(Reason(finding.code, finding.render()) for finding in self.findings if finding.is_blocking)
        return Refusal(reasons) if reasons else None


@dataclass(frozen=True)
class TreeState:
    """Whether what is on disk is what a commit says."""

    commit: str
    dirty_files: tuple[str, ...]
    """Changed or new and not ignored, relative to the project."""

    @property
    def is_dirty(self) -> bool:
        """Whether anything differs from the commit."""
        return bool(self.dirty_files)

    def refusal(self, *, allow_dirty: bool) -> Refusal | None:
        """A release from a dirty tree cannot be rebuilt from its commit: refused unless allowed."""
        if allow_dirty or not self.is_dirty:
            return None
        shown = ", ".join(self.dirty_files[:5]) + (", …" if len(self.dirty_files) > 5 else "")
        count = f"{len(self.dirty_files)} {'files differ' if len(self.dirty_files) > 1 else 'file differs'}"
        text = f"{count} from commit {self.commit[:12]}: {shown}; commit them, or pass --allow-dirty"
        return Refusal((Reason("dirty-tree", text),))


def read_tree_state(repository: GitRepository) -> TreeState:
    """The commit that is checked out and what differs from it.

    Raises:
        ProjectError: There is no commit yet.
    """
    return TreeState(commit=repository.head_commit(), dirty_files=repository.dirty_paths())


def check_source(places: Places, *, product: str, tracked_files: Iterable[str] | None = None) -> SourceReport:
    """All findings about a product's trainer, the project's text files and the lock.

    Args:
        places: The project.
        product: Whose trainer is checked.
        tracked_files: Relative paths searched for secrets; default all text files in the asset folders.

    Raises:
        TrainingError: The trainer is absent, or ruff could not run.
    """
    trainer = places.trainer_file(product)
    if not trainer.is_file():
        raise TrainingError(f"{trainer} does not exist", hint="a product's trainer is training/<product>.py")
    searched = sorted(_choose_files(places.root, tracked_files))
    locked = read_lock(places.lock_file.read_text(encoding="utf-8")) if places.lock_file.is_file() else ()
    findings = [
        *_find_insecure_code(places.root, (trainer, *sorted((places.root / "evaluation" / "checks").glob("*.py")))),
        *_find_secrets(places.root, searched),
        *judge_lock(locked, path=places.lock_file.name),
    ]
    if not locked:
        findings.append(Finding("lock-missing", places.lock_file.name, 0, "is absent or empty; run `make lock`", True))
    return SourceReport(
        product=product, findings=tuple(findings), files_searched=len(searched), distributions=len(locked)
    )


def judge_lock(locked: Iterable[LockedDistribution], *, path: str) -> Iterator[Finding]:
    """Findings about licences, and about versions that are not the locked ones."""
    for distribution in locked:
        name, installed = distribution.name, distribution.installed
        if installed is None:
            continue  # an extra or a marker that this machine does not need
        if installed.partition("+")[0] != distribution.locked.partition("+")[0]:
            text = f"{name} {installed} is installed, but {distribution.locked} is locked; run `make setup`"
            yield Finding("lock-differs", path, 0, text, True)
        problem = judge_licence(name, distribution.licence)
        if problem:
            yield Finding("licence", path, 0, f"{name} {distribution.locked}: {problem}", True)


def _choose_files(root: Path, tracked_files: Iterable[str] | None) -> Iterator[Path]:
    if tracked_files is None:
        candidates: Iterable[Path] = (path for name in _SEARCHED for path in (root / name).rglob("*"))
    else:
        candidates = (root / name for name in tracked_files)
    for path in candidates:
        if path.suffix in _SEARCHED_SUFFIXES and path.is_file() and path.stat().st_size <= _MAX_SEARCHED_BYTES:
            yield path


def _find_insecure_code(root: Path, files: tuple[Path, ...]) -> Iterator[Finding]:
    """Ruff's security rules (flake8-bandit); a `noqa` with its reason in the line is reported, but does not block."""
    command = [
        sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--exit-zero", "--ignore-noqa",
        "--select", "S", "--ignore", "S101", "--output-format", "json", *map(str, files),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    try:
        problems = json.loads(done.stdout)
    except json.JSONDecodeError as error:
        reason = done.stderr.strip() or f"exit {done.returncode}"
        raise TrainingError(f"ruff could not check {files[0]}: {reason}", hint="run `make setup`") from error
    for problem in problems:
        path, line = Path(problem["filename"]), int(problem["location"]["row"])
        code = problem["code"] if problem["code"] and problem["code"].startswith("S") else None
        is_excused = code is not None and f"noqa: {code}" in _read_line(path, line)
        text = f"{code}: {problem['message']}" if code else problem["message"]
        kind = "insecure-code" if code else "syntax-error"
        yield Finding(kind, _relative(path, root), line, text, not is_excused)


def _find_secrets(root: Path, files: Iterable[Path]) -> Iterator[Finding]:
    from detect_secrets.core.scan import scan_file  # costs 0.3 s
    from detect_secrets.settings import transient_settings

    with transient_settings({"plugins_used": [{"name": name} for name in _SECRET_PLUGINS]}):
        for path in files:
            for secret in scan_file(str(path)):
                if _PUBLIC_LINE.search(_read_line(path, int(secret.line_number))):
                    continue
                text = f"looks like a secret ({secret.type}); keep secrets out of git and name them instead"
                yield Finding("secret", _relative(path, root), int(secret.line_number), text, True)


def _read_line(path: Path, number: int) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[number - 1] if 0 < number <= len(lines) else ""


def _relative(path: Path, root: Path) -> str:
    return path.resolve().relative_to(root.resolve()).as_posix()
