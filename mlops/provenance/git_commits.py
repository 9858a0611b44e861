"""Commits that the machine makes: of given files only, signed, all or nothing, with no identity and no hooks.

A commit is built beside the index and HEAD is moved by compare-and-swap, so two writers cannot lose each other's work
and nothing that a person has staged or changed is touched. Signatures are SSH signatures (openssh PROTOCOL.sshsig) with
the machine's Ed25519 key, made here, so that no ssh-keygen is needed; `git verify-commit` accepts them.
Leaves to others: what is committed and by whose decision (mlops/deploy).
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import BaseFileLock, FileLock

from mlops.clock import SECOND_US, Clock
from mlops.errors import Reason, Refusal
from mlops.files import write_atomically
from mlops.provenance.ed25519 import SigningKey, is_signed_by, parse_public_key, render_raw_public_key
from mlops.provenance.git_repository import GitRepository, run_git

AUTHOR = "mlops <mlops@localhost>"
"""Who machine commits are by."""

_NAMESPACE = b"git"
_ATTEMPTS = 5
_MARKER = "mlops-pending.json"


@dataclass(frozen=True)
class SignedCommit:
    """A commit's author and the key that signed it."""

    commit: str
    author: str
    """`name <e-mail>`."""
    signer: str | None
    """Public key whose signature holds; None when there is none or it does not."""


def commit_files(
    repository: GitRepository,
    files: Mapping[str, bytes | None],
    *,
    message: str,
    key: SigningKey | None,
    clock: Clock,
    expected_head: str | None = None,
    is_written: bool = False,
) -> str | Refusal:
    """Commit the new content of some files on top of HEAD, then write them to the work tree.

    Killed before HEAD moves, nothing happened; killed after, the next call finishes the work tree.

    Args:
        repository: Where.
        files: Path to new content; None removes the file.
        message: Subject and body.
        key: Signs the commit; None leaves it unsigned.
        clock: Author and commit time.
        expected_head: Refuse when HEAD is not this commit (any more).
        is_written: The work tree may hold the new content already; such a path is not dirty.

    Returns:
        The new commit (HEAD itself if nothing would change), or a refusal: a path is dirty, or HEAD moved.
    """
    with _lock(repository):
        finish_interrupted_commit(repository)
        for _ in range(_ATTEMPTS):
            head = repository.head_commit()
            unwritten = {
                path: blob for path, blob in files.items() if not (is_written and _holds(repository, path, blob))
            }
            refusal = _find_obstacle(repository, unwritten, head=head, expected_head=expected_head)
            if refusal is not None:
                return refusal
            tree = _write_tree(repository, files, head=head)
            if tree == run_git(repository.root, "rev-parse", f"{head}^{{tree}}").stdout.decode().strip():
                return head
            commit = _write_commit(repository, tree=tree, parent=head, message=message, key=key, clock=clock)
            marker = _git_folder(repository) / _MARKER
            write_atomically(marker, json.dumps({"commit": commit, "paths": sorted(files)}))
            moved = run_git(repository.root, "update-ref", "-m", "mlops", "HEAD", commit, head, is_checked=False)
            if moved.returncode == 0:
                _write_work_tree(repository, files)
                marker.unlink(missing_ok=True)
                return commit
    return Refusal((Reason("head-moved", "other commits came in between each time; try again"),))


def finish_interrupted_commit(repository: GitRepository) -> tuple[str, ...]:
    """Write the files of a machine commit that was killed after HEAD moved; returns which.

    A file that is neither as before that commit nor as in it was changed by hand since, and is left alone.
    """
    marker = _git_folder(repository) / _MARKER
    if not marker.exists():
        return ()
    pending = json.loads(marker.read_text(encoding="utf-8"))
    commit: str = pending["commit"]
    stale: dict[str, bytes | None] = {}
    if repository.head_commit() == commit:
        for path in pending["paths"]:
            old, new = (_content_at(repository, path, revision=revision) for revision in (f"{commit}^", commit))
            place = repository.root / path
            if (place.read_bytes() if place.is_file() else None) in (old, new):
                stale[path] = new
        _write_work_tree(repository, stale)
    marker.unlink(missing_ok=True)
    return tuple(stale)


def read_commit(repository: GitRepository, revision: str) -> SignedCommit:
    """A commit's author and signer, the signature checked.

    Raises:
        ProvenanceError: No such commit.
    """
    commit = repository.resolve(revision)
    raw = run_git(repository.root, "cat-file", "commit", commit).stdout
    signature, message = _split_signature(raw)
    header = raw.split(b"\n\n", 1)[0].decode(errors="replace")
    author = next((line[7:] for line in header.split("\n") if line.startswith("author ")), "")
    return SignedCommit(commit, author.rsplit(" ", 2)[0], _find_signer(signature, message) if signature else None)


def _holds(repository: GitRepository, path: str, content: bytes | None) -> bool:
    place = repository.root / path
    return (place.read_bytes() if place.is_file() else None) == content


def _find_obstacle(
    repository: GitRepository, files: Mapping[str, bytes | None], *, head: str, expected_head: str | None
) -> Refusal | None:
    if expected_head is not None and head != expected_head:
        text = f"HEAD is {head[:12]}, the decision was made on {expected_head[:12]}; look again and decide again"
        return Refusal((Reason("head-moved", text),))
    dirty = repository.dirty_paths(*files) if files else ()
    if dirty:
        text = "was changed by hand: commit the change or `git checkout` the file"
        return Refusal(tuple(Reason("dirty-path", f"{path} {text}") for path in dirty))
    return None


def _git_folder(repository: GitRepository) -> Path:
    return Path(run_git(repository.root, "rev-parse", "--absolute-git-dir").stdout.decode().rstrip("\n"))


def _lock(repository: GitRepository) -> BaseFileLock:
    """One machine commit at a time; the lock vanishes with the process that holds it."""
    return FileLock(_git_folder(repository) / "mlops-commit.lock", timeout=60)


def _content_at(repository: GitRepository, path: str, *, revision: str) -> bytes | None:
    found = run_git(repository.root, "cat-file", "blob", f"{revision}:{repository.prefix}{path}", is_checked=False)
    return found.stdout if found.returncode == 0 else None


def _write_tree(repository: GitRepository, files: Mapping[str, bytes | None], *, head: str) -> str:
    """Tree of HEAD with the files replaced, made in an index of its own."""
    index = _git_folder(repository) / f"mlops-index-{secrets.token_hex(8)}"
    environment = {"GIT_INDEX_FILE": str(index)}
    try:
        run_git(repository.root, "read-tree", head, environment=environment)
        _update_index(repository, files, environment=environment)
        return run_git(repository.root, "write-tree", environment=environment).stdout.decode().strip()
    finally:
        index.unlink(missing_ok=True)


def _update_index(
    repository: GitRepository, files: Mapping[str, bytes | None], *, environment: Mapping[str, str] | None = None
) -> None:
    lines: list[str] = []
    for path, content in files.items():
        name = f"{repository.prefix}{path}"
        if content is None:
            lines.append(f"0 {'0' * 40}\t{name}")
            continue
        blob = run_git(repository.root, "hash-object", "-w", "--stdin", content=content).stdout.decode().strip()
        lines.append(f"100644 {blob}\t{name}")
    top = Path(run_git(repository.root, "rev-parse", "--show-toplevel").stdout.decode().rstrip("\n"))
    run_git(top, "update-index", "-z", "--index-info", content="\0".join(lines).encode(), environment=environment)


def _write_commit(
    repository: GitRepository, *, tree: str, parent: str, message: str, key: SigningKey | None, clock: Clock
) -> str:
    stamp = f"{AUTHOR} {clock.now_us() // SECOND_US} +0000"
    header = f"tree {tree}\nparent {parent}\nauthor {stamp}\ncommitter {stamp}\n"
    body = f"\n{message.rstrip()}\n"
    raw = (header + body).encode()
    if key is not None:
        armored = sign_ssh(raw, key=key)
        raw = f"{header}gpgsig {armored.replace(chr(10), chr(10) + ' ')}\n{body}".encode()
    return run_git(repository.root, "hash-object", "-t", "commit", "-w", "--stdin", content=raw).stdout.decode().strip()


def _write_work_tree(repository: GitRepository, files: Mapping[str, bytes | None]) -> None:
    for path, content in files.items():
        place = repository.root / path
        if content is None:
            place.unlink(missing_ok=True)
        else:
            write_atomically(place, content)
    _update_index(repository, files)


def sign_ssh(message: bytes, *, key: SigningKey) -> str:
    """Armored SSH signature in the namespace `git`, as `ssh-keygen -Y sign` makes it."""
    public = _public_blob(key.public)
    blob = _string(b"ssh-ed25519") + _string(key.sign(_to_be_signed(message)))
    packed = b"SSHSIG\x00\x00\x00\x01" + b"".join(map(_string, (public, _NAMESPACE, b"", b"sha512", blob)))
    lines = textwrap.wrap(base64.b64encode(packed).decode(), 70)
    return "\n".join(("-----BEGIN SSH SIGNATURE-----", *lines, "-----END SSH SIGNATURE-----"))


def _find_signer(armored: str, message: bytes) -> str | None:
    """Public key whose SSH signature holds over `message`."""
    try:
        lines = armored.strip().split("\n")
        packed = base64.b64decode("".join(lines[1:-1]), validate=True)
        if packed[:10] != b"SSHSIG\x00\x00\x00\x01":
            return None
        public_blob, namespace, _, algorithm, blob = _split_strings(packed[10:])
        key_kind, raw = _split_strings(public_blob)
        signature_kind, signature = _split_strings(blob)
    except ValueError:
        return None
    expected = (_NAMESPACE, b"sha512", b"ssh-ed25519", b"ssh-ed25519")
    if (namespace, algorithm, key_kind, signature_kind) != expected:
        return None
    public = render_raw_public_key(raw)
    return public if is_signed_by(public, message=_to_be_signed(message), signature=signature) else None


def render_allowed_signer(public: str, *, name: str) -> str:
    """A line of an `allowed_signers` file for `git verify-commit`."""
    return f'{name} namespaces="git" ssh-ed25519 {base64.b64encode(_public_blob(public)).decode()}'


def _split_signature(raw: bytes) -> tuple[str | None, bytes]:
    """The `gpgsig` header of a commit object, and the object without it."""
    header, _, body = raw.partition(b"\n\n")
    kept: list[bytes] = []
    signature: list[bytes] = []
    is_inside = False
    for line in header.split(b"\n"):
        is_inside = line.startswith(b"gpgsig ") or (is_inside and line.startswith(b" "))
        (signature if is_inside else kept).append(line)
    if not signature:
        return None, raw
    text = b"\n".join([signature[0].removeprefix(b"gpgsig "), *(line[1:] for line in signature[1:])])
    return text.decode(errors="replace"), b"\n".join(kept) + b"\n\n" + body


def _to_be_signed(message: bytes) -> bytes:
    return b"SSHSIG" + b"".join(map(_string, (_NAMESPACE, b"", b"sha512", hashlib.sha512(message).digest())))


def _public_blob(public: str) -> bytes:
    return _string(b"ssh-ed25519") + _string(parse_public_key(public).public_bytes_raw())


def _string(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content


def _split_strings(packed: bytes) -> tuple[bytes, ...]:
    """The strings of an SSH structure.

    Raises:
        ValueError: It ends in the middle of one.
    """
    found: list[bytes] = []
    while packed:
        length = int.from_bytes(packed[:4], "big")
        if len(packed) < 4 + length:
            raise ValueError("an SSH structure is cut off")
        found.append(packed[4 : 4 + length])
        packed = packed[4 + length :]
    return tuple(found)
