"""The git door on a real repository in a temporary folder, with an empty HOME and no identity."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from mlops.clock import FakeClock
from mlops.errors import ProjectError, ProvenanceError, Refusal
from mlops.provenance.git_commits import (
    AUTHOR,
    commit_files,
    finish_interrupted_commit,
    read_commit,
    render_allowed_signer,
)
from mlops.provenance.git_repository import GitRepository, open_repository, run_git
from mlops.provenance.keys import make_key

PERSON = {
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
}


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as inside a hook of another repository
    folder = tmp_path / "repository"
    folder.mkdir()
    run_git(folder, "init", "--quiet", "--initial-branch=main")
    return folder


def commit_as_person(top: Path, files: dict[str, str], message: str = "Change") -> str:
    for name, content in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(content)
    run_git(top, "add", "--all")
    run_git(top, "commit", "--quiet", "-m", message, environment=PERSON)
    return run_git(top, "rev-parse", "HEAD").stdout.decode().strip()


@pytest.fixture(params=["", "deep/project/"])
def repository(request: pytest.FixtureRequest, top: Path) -> GitRepository:
    prefix: str = request.param
    commit_as_person(top, {f"{prefix}a.txt": "one", f"{prefix}folder/b c.txt": "two", "outside.txt": "x"})
    return open_repository(top / prefix)


def test_a_folder_without_git_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="not in a git repository") as caught:
        open_repository(tmp_path)
    assert "git init" in caught.value.hint


def test_a_repository_without_commits_says_so(top: Path) -> None:
    with pytest.raises(ProjectError, match="no commit yet"):
        open_repository(top).head_commit()


def test_dirty_paths_are_changed_staged_deleted_and_new_ones(repository: GitRepository) -> None:
    assert repository.dirty_paths() == ()
    root = repository.root
    (root / "a.txt").write_text("changed")
    (root / "folder" / "b c.txt").unlink()
    (root / "new-é.txt").write_text("")
    (root / ".gitignore").write_text("*.log\n")
    (root / "x.log").write_text("")
    assert repository.dirty_paths() == (".gitignore", "a.txt", "folder/b c.txt", "new-é.txt")
    assert repository.dirty_paths("folder") == ("folder/b c.txt",)


def test_changed_files_between_two_commits(repository: GitRepository) -> None:
    top = repository.root
    base = repository.head_commit()
    (top / "a.txt").rename(top / "renamed.txt")
    head = commit_as_person(top, {"c.txt": "three"})
    assert repository.changed_files(base, head) == ("a.txt", "c.txt", "renamed.txt")
    assert repository.changed_files(head, head) == ()


@pytest.mark.parametrize("revision", ["nonsense", "", "--help", "HEAD:a.txt", "0" * 40])
def test_unknown_revisions_are_refused(repository: GitRepository, revision: str) -> None:
    with pytest.raises(ProvenanceError, match="no commit"):
        repository.resolve(revision)


def test_files_are_read_from_a_revision_not_from_the_work_tree(repository: GitRepository) -> None:
    base = repository.head_commit()
    commit_as_person(repository.root, {"a.txt": "later"})
    (repository.root / "a.txt").write_text("dirty")
    assert repository.read_file("a.txt", revision=base) == b"one"
    assert repository.read_file("a.txt") == b"later"
    with pytest.raises(ProvenanceError, match=r"has no file absent\.txt"):
        repository.read_file("absent.txt")
    assert repository.list_files() == ("a.txt", "folder/b c.txt", *(("outside.txt",) if not repository.prefix else ()))
    assert repository.list_files("folder/") == ("folder/b c.txt",)


def test_tracked_files_and_their_last_commit(repository: GitRepository) -> None:
    base = repository.head_commit()
    commit_as_person(repository.root, {"c.txt": "three"})
    (repository.root / "new.txt").write_text("")
    assert repository.is_tracked("a.txt")
    assert not repository.is_tracked("new.txt")
    assert repository.last_commit_of("a.txt") == base
    assert repository.last_commit_of("new.txt") is None
    assert repository.authors_of("c.txt", base=base, head="HEAD") == ("ada@example.org",)
    assert repository.authors_of("a.txt", base=base, head="HEAD") == ()


def test_a_clone_holds_one_commit_and_no_dirt(repository: GitRepository, tmp_path: Path) -> None:
    base = repository.head_commit()
    commit_as_person(repository.root, {"a.txt": "later"})
    (repository.root / "dirt.txt").write_text("")
    root = repository.clone_at(base, tmp_path / "clone")
    assert (root / "a.txt").read_text() == "one"
    assert not (root / "dirt.txt").exists()


def test_a_commit_that_no_branch_holds_any_more_can_be_cloned(repository: GitRepository, tmp_path: Path) -> None:
    lost = commit_as_person(repository.root, {"a.txt": "amended away"})
    run_git(repository.root, "reset", "--quiet", "--hard", "HEAD^")
    assert (repository.clone_at(lost, tmp_path / "clone") / "a.txt").read_text() == "amended away"


def test_a_machine_commit_touches_only_its_paths(repository: GitRepository, tmp_path: Path) -> None:
    (repository.root / "a.txt").write_text("a person is working here")
    run_git(repository.root, "add", "a.txt")
    (repository.root / "new.txt").write_text("and here")
    key = make_key(tmp_path / "keys", "machine", clock=FakeClock())
    commit = commit_files(
        repository,
        {"deploy/desired/staging.yaml": b"x: 1\n", "folder/b c.txt": None},
        message="Promote",
        key=key,
        clock=FakeClock(),
    )
    assert commit == repository.head_commit()
    assert repository.changed_files("HEAD^", "HEAD") == ("deploy/desired/staging.yaml", "folder/b c.txt")
    assert (repository.root / "deploy/desired/staging.yaml").read_bytes() == b"x: 1\n"
    assert not (repository.root / "folder/b c.txt").exists()
    assert repository.dirty_paths() == ("a.txt", "new.txt")
    assert run_git(repository.root, "diff", "--cached", "--name-only", "--relative").stdout == b"a.txt\n"
    assert read_commit(repository, "HEAD").author == AUTHOR
    assert read_commit(repository, "HEAD").signer == key.public


@pytest.mark.parametrize("kind", ["changed", "untracked", "deleted"])
def test_a_dirty_path_is_refused_and_left_alone(repository: GitRepository, kind: str) -> None:
    path = {"changed": "a.txt", "untracked": "new.txt", "deleted": "folder/b c.txt"}[kind]
    place = repository.root / path
    place.unlink() if kind == "deleted" else place.write_text("by hand")
    head = repository.head_commit()
    outcome = commit_files(repository, {path: b"machine"}, message="m", key=None, clock=FakeClock())
    assert isinstance(outcome, Refusal)
    assert [reason.code for reason in outcome.reasons] == ["dirty-path"]
    assert repository.head_commit() == head
    assert kind == "deleted" or place.read_text() == "by hand"


def test_nothing_to_change_makes_no_commit(repository: GitRepository) -> None:
    head = repository.head_commit()
    assert commit_files(repository, {"a.txt": b"one"}, message="m", key=None, clock=FakeClock()) == head


def test_a_decision_made_on_another_head_is_refused(repository: GitRepository) -> None:
    base = repository.head_commit()
    commit_as_person(repository.root, {"c.txt": "three"})
    outcome = commit_files(repository, {"d.txt": b""}, message="m", key=None, clock=FakeClock(), expected_head=base)
    assert isinstance(outcome, Refusal)
    assert outcome.reasons[0].code == "head-moved"


def test_two_writers_lose_nothing(repository: GitRepository) -> None:
    outcomes: list[str | Refusal] = []

    def write(name: str) -> None:
        outcomes.append(commit_files(repository, {name: b"x"}, message=name, key=None, clock=FakeClock()))

    threads = [threading.Thread(target=write, args=(f"file-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(outcome, str) for outcome in outcomes)
    assert len(set(repository.list_files()) & {f"file-{number}" for number in range(4)}) == 4
    assert repository.dirty_paths() == ()


def interrupt_after_head_moved(repository: GitRepository) -> None:
    """The state that a kill between moving HEAD and writing the work tree leaves."""
    commit = commit_files(repository, {"a.txt": b"new", "fresh.txt": b"new"}, message="m", key=None, clock=FakeClock())
    assert isinstance(commit, str)
    run_git(repository.root, "reset", "--quiet", "HEAD^", "--", ".")
    (repository.root / "a.txt").write_text("one")
    (repository.root / "fresh.txt").unlink()
    git_folder = Path(run_git(repository.root, "rev-parse", "--absolute-git-dir").stdout.decode().strip())
    (git_folder / "mlops-pending.json").write_text(json.dumps({"commit": commit, "paths": ["a.txt", "fresh.txt"]}))


def test_a_killed_machine_commit_is_finished_by_the_next(repository: GitRepository) -> None:
    interrupt_after_head_moved(repository)
    assert isinstance(commit_files(repository, {"a.txt": b"next"}, message="m", key=None, clock=FakeClock()), str)
    assert (repository.root / "fresh.txt").read_bytes() == b"new"
    assert repository.dirty_paths() == ()


def test_finishing_leaves_alone_what_was_changed_by_hand_since(repository: GitRepository) -> None:
    interrupt_after_head_moved(repository)
    (repository.root / "a.txt").write_text("by hand")
    assert finish_interrupted_commit(repository) == ("fresh.txt",)
    assert (repository.root / "a.txt").read_text() == "by hand"


def test_an_ordinary_change_back_to_the_old_content_is_dirty_not_finished(repository: GitRepository) -> None:
    commit_files(repository, {"a.txt": b"new"}, message="m", key=None, clock=FakeClock())
    (repository.root / "a.txt").write_text("one")
    outcome = commit_files(repository, {"a.txt": b"next"}, message="m", key=None, clock=FakeClock())
    assert isinstance(outcome, Refusal)


def test_a_changed_commit_object_has_no_signer(repository: GitRepository, tmp_path: Path) -> None:
    key = make_key(tmp_path / "keys", "machine", clock=FakeClock())
    commit = commit_files(repository, {"a.txt": b"new"}, message="Promote one", key=key, clock=FakeClock())
    assert isinstance(commit, str)
    raw = run_git(repository.root, "cat-file", "commit", commit).stdout
    for forged in (raw.replace(b"Promote one", b"Promote two"), raw.replace(b"1800000000", b"1800000001")):
        twin = run_git(repository.root, "hash-object", "-t", "commit", "-w", "--stdin", content=forged).stdout
        assert read_commit(repository, twin.decode().strip()).signer is None
    assert read_commit(repository, "HEAD^").signer is None


@pytest.mark.system
@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed (openssh-client)")
def test_git_itself_accepts_the_signature(repository: GitRepository, tmp_path: Path) -> None:
    key = make_key(tmp_path / "keys", "machine", clock=FakeClock())
    commit_files(repository, {"a.txt": b"new"}, message="Promote", key=key, clock=FakeClock())
    (tmp_path / "signers").write_text(render_allowed_signer(key.public, name="mlops@localhost") + "\n")
    verify = ["git", "-c", f"gpg.ssh.allowedSignersFile={tmp_path / 'signers'}", "verify-commit", "HEAD"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    result = subprocess.run(verify, cwd=repository.root, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    assert 'Good "git" signature for mlops@localhost' in result.stderr
