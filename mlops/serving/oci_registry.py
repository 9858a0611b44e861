"""A client of the OCI distribution protocol: blobs, manifests, tags, referrers; retried and resumed.

Plain HTTP is spoken to this machine only, HTTPS to all others. The specification: opencontainers/distribution-spec 1.1.
Leaves to others: which blobs make an image (image_transfer.py), credentials (registry_credentials.py).
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlencode, urljoin, urlsplit

from mlops.errors import ServingError
from mlops.provenance.digest import digest_bytes, digest_file
from mlops.serving.oci_layout import INDEX_TYPE, MANIFEST_TYPE
from mlops.serving.registry_credentials import Credentials, find_credentials

_REFERENCE = re.compile(
    r"(?P<registry>[a-zA-Z0-9.-]+(?::\d+)?|\[[0-9a-f:]+\](?::\d+)?)/(?P<repository>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}
_TRIES = 5
_TIMEOUT_SECONDS = 60
_CHUNK = 8 << 20
_DROPPED = (OSError, http.client.HTTPException)
_LARGEST_MANIFEST = 4 << 20


@dataclass(frozen=True)
class RegistryReference:
    """`registry/repository:tag` or `…@sha256:…`."""

    registry: str
    repository: str
    tag: str | None
    digest: str | None

    @property
    def target(self) -> str:
        """What is asked for: the digest if there is one."""
        return self.digest or self.tag or "latest"


def parse_registry_reference(text: str) -> RegistryReference:
    """Text to a reference; the registry must be named.

    Raises:
        ServingError: Not of that form.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None or not ("." in match["registry"] or ":" in match["registry"] or match["registry"] == "localhost"):
        raise ServingError(f"{text!r} is not registry/repository:tag or registry/repository@sha256:…")
    return RegistryReference(match["registry"], match["repository"], match["tag"], match["digest"])


@dataclass(frozen=True)
class _Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class RegistryClient:
    """One repository of one registry."""

    registry: str
    repository: str
    find_login: Callable[[str], Credentials | None] = find_credentials
    pause: Callable[[float], None] = time.sleep
    """Between tries."""
    _authorization: str | None = field(default=None, repr=False)

    def has_blob(self, digest: str) -> bool:
        """Whether the registry has a blob."""
        return self._ask("HEAD", f"blobs/{digest}", accepted=(200, 404), actions="pull").status == 200

    def push_blob(self, path: Path, *, digest: str) -> bool:
        """Upload a file in pieces, from its start again when a connection breaks; False when it was there already.

        Raises:
            ServingError: The registry refuses it or stays away.
        """
        if self.has_blob(digest):
            return False
        started = self._ask("POST", "blobs/uploads/", accepted=(202,), actions="pull,push")
        location, at, size = self._location(started), 0, path.stat().st_size
        with path.open("rb") as stream:
            while at < size:
                location, at = self._push_piece(stream, location=location, at=at, size=size)
        separator = "&" if "?" in location else "?"
        closed = f"{location}{separator}{urlencode({'digest': digest})}"
        self._ask("PUT", closed, accepted=(201,), headers={"content-length": "0"}, actions="pull,push")
        return True

    def pull_blob(self, digest: str, *, target: Path, size: int) -> None:
        """Download a blob to the file `target`, going on where a broken connection left off.

        Raises:
            ServingError: It is not there, larger than said, or not what its digest says.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(_TRIES):
            at = target.stat().st_size if target.is_file() else 0
            if at == size:
                break
            try:
                self._pull_rest(digest, target=target, at=at, size=size)
            except _DROPPED as error:
                self._give_up_after(attempt, f"blob {digest}", error)
        found = digest_file(target) if target.is_file() else "nothing"
        if found != digest:
            target.unlink(missing_ok=True)
            raise ServingError(f"{self.registry} sent {found} for the blob {digest}: refused")

    def push_manifest(self, content: bytes, *, target: str, media_type: str) -> str:
        """Store a manifest under a tag or its digest; returns the digest."""
        self._ask(
            "PUT",
            f"manifests/{target}",
            accepted=(201, 202),
            body=content,
            headers={"content-type": media_type},
            actions="pull,push",
        )
        return digest_bytes(content)

    def pull_manifest(self, target: str) -> bytes | None:
        """A manifest or index by tag or digest; None when there is none.

        Raises:
            ServingError: It is not what its digest says.
        """
        accept = ", ".join((MANIFEST_TYPE, INDEX_TYPE, "application/vnd.docker.distribution.manifest.v2+json"))
        reply = self._ask("GET", f"manifests/{target}", accepted=(200, 404), headers={"accept": accept})
        if reply.status == 404:
            return None
        if target.startswith("sha256:") and digest_bytes(reply.body) != target:
            raise ServingError(f"{self.registry} sent another manifest than {target}: refused")
        return reply.body

    def delete_manifest(self, digest: str) -> None:
        """Delete a manifest and every tag that means it; no error when there is none.

        Raises:
            ServingError: The registry does not let clients delete, or stays away.
        """
        reply = self._ask("DELETE", f"manifests/{digest}", accepted=(200, 202, 404, 405), actions="pull,delete")
        if reply.status == 405:
            raise ServingError(
                f"{self.registry} does not let clients delete {digest[:19]} from {self.repository}",
                hint="allow deletion in the registry's settings, or delete it there",
            )

    def delete_blob(self, digest: str) -> bool:
        """Delete a blob; False when the registry keeps blobs until it collects its garbage."""
        reply = self._ask("DELETE", f"blobs/{digest}", accepted=(200, 202, 404, 405), actions="pull,delete")
        return reply.status != 405

    def list_tags(self) -> tuple[str, ...]:
        """Every tag, page after page."""
        found: list[str] = []
        path: str | None = "tags/list?n=500"
        while path:
            reply = self._ask("GET", path, accepted=(200, 404))
            if reply.status == 404:
                return ()
            found += json.loads(reply.body).get("tags") or []
            link = re.match(r"<([^>]+)>\s*;\s*rel=\"?next", reply.headers.get("link", ""))
            path = link[1] if link else None
        return tuple(sorted(found))

    def list_referrers(self, digest: str) -> list[dict[str, Any]]:
        """Descriptors of what refers to a manifest: by the API, else by the fallback tag."""
        reply = self._ask("GET", f"referrers/{digest}", accepted=(200, 404, 400, 405))
        if reply.status == 200:
            return list(json.loads(reply.body).get("manifests") or [])
        content = self.pull_manifest(digest.replace(":", "-"))
        return [] if content is None else list(json.loads(content).get("manifests") or [])

    def push_referrer(self, content: bytes, *, descriptor: Mapping[str, Any], subject: str) -> None:
        """Store a manifest with a `subject`; where the registry does not index it, keep the fallback tag's index.

        The fallback is read, changed and written back: two writers at once can lose one entry, as the specification
        says; the loser sees that its entry is missing and writes again.
        """
        reply = self._ask(
            "PUT",
            f"manifests/{descriptor['digest']}",
            accepted=(201, 202),
            body=content,
            headers={"content-type": MANIFEST_TYPE},
            actions="pull,push",
        )
        if reply.headers.get("oci-subject"):
            return
        tag = subject.replace(":", "-")
        for attempt in range(_TRIES):
            old = self.pull_manifest(tag)
            entries = [] if old is None else list(json.loads(old).get("manifests") or [])
            if any(entry["digest"] == descriptor["digest"] for entry in entries):
                return
            index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [*entries, dict(descriptor)]}
            self.push_manifest(json.dumps(index, sort_keys=True).encode(), target=tag, media_type=INDEX_TYPE)
            self.pause(0.05 * attempt)

    def _push_piece(self, stream: IO[bytes], *, location: str, at: int, size: int) -> tuple[str, int]:
        for attempt in range(_TRIES):
            stream.seek(at)
            piece = stream.read(min(_CHUNK, size - at))
            headers = {
                "content-type": "application/octet-stream",
                "content-range": f"{at}-{at + len(piece) - 1}",
            }
            try:
                reply = self._once("PATCH", location, body=piece, headers=headers)
                if reply.status in (202, 204):
                    return self._location(reply), at + len(piece)
                problem: Exception = ServingError(_explain(reply))
                if reply.status not in (416, 429) and reply.status < 500:
                    raise problem
            except _DROPPED as error:
                problem = error
            self._give_up_after(attempt, "an upload", problem)
            started = self._ask("POST", "blobs/uploads/", accepted=(202,), actions="pull,push")
            location, at = self._location(started), 0
        raise AssertionError("the last try raises")

    def _pull_rest(self, digest: str, *, target: Path, at: int, size: int) -> None:
        connection, path = self._connect(self._url(f"blobs/{digest}"))
        try:
            headers = {**self._login_header(), **({"range": f"bytes={at}-"} if at else {})}
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            if response.status in (301, 302, 307):
                connection.close()
                connection, path = self._connect(urljoin(self._url(""), response.headers["location"]))
                connection.request("GET", path, headers={"range": f"bytes={at}-"} if at else {})
                response = connection.getresponse()
            if response.status == 401 and self._authorization is None:
                response.read()
                self._log_in(response.headers.get("www-authenticate", ""), actions="pull")
                raise ConnectionError("logged in; asking again")
            if response.status not in (200, 206):
                reply = _Reply(response.status, {}, response.read(2_000))
                raise ServingError(f"{self.registry}/{self.repository}: blob {digest}: {_explain(reply)}")
            with target.open("ab" if response.status == 206 else "wb") as output:
                while piece := response.read(1 << 20):
                    output.write(piece)
                    if output.tell() > size:
                        raise ServingError(f"{self.registry} sends more than {size} bytes for {digest}: refused")
        finally:
            connection.close()

    def _ask(
        self,
        method: str,
        path: str,
        *,
        accepted: tuple[int, ...],
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        actions: str = "pull",
    ) -> _Reply:
        """Ask, log in when told to, and try again when the registry stumbles."""
        for attempt in range(_TRIES):
            try:
                reply = self._once(method, path, body=body, headers=headers or {})
                if reply.status == 401 and self._authorization is None:
                    self._log_in(reply.headers.get("www-authenticate", ""), actions=actions)
                    reply = self._once(method, path, body=body, headers=headers or {})
            except _DROPPED as error:
                self._give_up_after(attempt, f"{method} {path}", error)
                continue
            if reply.status in accepted:
                return reply
            if reply.status != 429 and reply.status < 500:
                hint = "check the credentials in docker's config.json" if reply.status in (401, 403) else ""
                raise ServingError(f"{self.registry}/{self.repository}: {method} {path}: {_explain(reply)}", hint=hint)
            self._give_up_after(attempt, f"{method} {path}", ServingError(_explain(reply)))
        raise AssertionError("the last try raises")

    def _once(self, method: str, path: str, *, body: bytes, headers: Mapping[str, str]) -> _Reply:
        connection, target = self._connect(self._url(path))
        try:
            connection.request(method, target, body=body or None, headers={**self._login_header(), **headers})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return _Reply(response.status, found, response.read(_LARGEST_MANIFEST))
        finally:
            connection.close()

    def _log_in(self, challenge: str, *, actions: str) -> None:
        login = self.find_login(self.registry)
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic" and login is not None:
            token = base64.b64encode(f"{login.name}:{login.password}".encode()).decode()
            self._authorization = f"Basic {token}"
        elif scheme.lower() == "bearer":
            self._authorization = f"Bearer {self._fetch_token(rest, login, actions=actions)}"

    def _fetch_token(self, challenge: str, login: Credentials | None, *, actions: str) -> str:
        fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        query = urlencode({"service": fields.get("service", ""), "scope": f"repository:{self.repository}:{actions}"})
        connection, path = self._connect(fields["realm"])
        headers = {}
        if login is not None:
            token = base64.b64encode(f"{login.name}:{login.password}".encode()).decode()
            headers["authorization"] = f"Basic {token}"
        try:
            connection.request("GET", f"{path}{'&' if '?' in path else '?'}{query}", headers=headers)
            response = connection.getresponse()
            content = response.read(_LARGEST_MANIFEST)
        finally:
            connection.close()
        if response.status != 200:
            raise ServingError(
                f"{self.registry} gives no token for {self.repository} (status {response.status})",
                hint="check the credentials in docker's config.json",
            )
        found = json.loads(content)
        return str(found.get("token") or found["access_token"])

    def _login_header(self) -> dict[str, str]:
        return {"authorization": self._authorization} if self._authorization else {}

    def _location(self, reply: _Reply) -> str:
        return urljoin(self._url(""), reply.headers.get("location", ""))

    def _url(self, path: str) -> str:
        if path.startswith(("http://", "https://")):
            return path
        host = self.registry.rpartition(":")[0] if re.search(r":\d+$", self.registry) else self.registry
        scheme = "http" if host in _LOOPBACK else "https"
        if path.startswith("/"):
            return f"{scheme}://{self.registry}{path}"
        return f"{scheme}://{self.registry}/v2/{quote(self.repository)}/{path}"

    def _connect(self, url: str) -> tuple[http.client.HTTPConnection, str]:
        parts = urlsplit(url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        if parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(parts.netloc, timeout=_TIMEOUT_SECONDS, context=context), path
        if f"[{parts.hostname}]" not in _LOOPBACK and parts.hostname not in _LOOPBACK:
            raise ServingError(f"{url} is not encrypted: refused")
        return http.client.HTTPConnection(parts.netloc, timeout=_TIMEOUT_SECONDS), path

    def _give_up_after(self, attempt: int, what: str, error: Exception) -> None:
        if attempt + 1 == _TRIES:
            raise ServingError(
                f"{self.registry}/{self.repository}: {what} failed {_TRIES} times: {error}", hint="try again later"
            ) from error
        self.pause(0.1 * 2**attempt)


def _explain(reply: _Reply) -> str:
    try:
        errors = json.loads(reply.body)["errors"]
        return "; ".join(f"{item['code']} {item.get('message', '')}".strip() for item in errors)
    except (ValueError, KeyError, TypeError):
        return f"status {reply.status}"
