"""Matching OSV records fails closed, and orders Debian's versions as dpkg does."""

import itertools
import json
import shutil
import subprocess
from datetime import UTC, date, datetime

import pytest

from mlops.serving.inventory import Inventory, Package
from mlops.serving.vulnerabilities import Acceptance, compare_debian_versions, find_vulnerabilities

NOW = datetime(2026, 11, 22, tzinfo=UTC)
NUMPY = Package("pypi", "numpy", "2.4.6", "numpy", "2.4.6", "BSD")
SSL = Package("deb", "libssl3", "3.0.22-1~deb12u2", "openssl", "3.0.22-1~deb12u2", "Apache-2.0")
INVENTORY = Inventory(digest="sha256:" + "0" * 64, config={}, files={}, packages=(NUMPY, SSL), models=())


def _record(ecosystem, name, *, events=None, versions=None, **changes):
    entry = {"package": {"ecosystem": ecosystem, "name": name}}
    if events:
        entry["ranges"] = [{"type": "ECOSYSTEM", "events": events}]
    if versions:
        entry["versions"] = versions
    return {"id": "OSV-1", "summary": "bad", "affected": [entry], **changes}


@pytest.fixture
def snapshot(tmp_path):
    def write(*records, created="2026-11-21T00:00:00Z", ecosystems=("PyPI", "Debian:12"), about=None):
        content = {"version": 1, "created": created, "ecosystems": list(ecosystems)}
        (tmp_path / "snapshot.json").write_text(json.dumps(content if about is None else about))
        for number, record in enumerate(records):
            (tmp_path / f"{number}.json").write_text(record if isinstance(record, str) else json.dumps(record))
        return tmp_path

    return write


OTHER = _record("PyPI", "someone-else", events=[{"introduced": "0"}])
HITS = {
    "an open range": _record("PyPI", "NumPy", events=[{"introduced": "0"}]),
    "a range fixed later": _record("PyPI", "numpy", events=[{"introduced": "2.0"}, {"fixed": "2.10"}]),
    "a last affected version": _record("PyPI", "numpy", events=[{"introduced": "0"}, {"last_affected": "2.4.6"}]),
    "a listed version": _record("PyPI", "numpy", versions=["2.4.6"]),
    "a second range": _record(
        "PyPI", "numpy", events=[{"introduced": "0"}, {"fixed": "1.0"}, {"introduced": "2.4"}, {"fixed": "3"}]
    ),
    "a Debian source package": _record(
        "Debian:12", "openssl", events=[{"introduced": "0"}, {"fixed": "3.0.22-1~deb12u3"}]
    ),
}
MISSES = {
    "fixed before": _record("PyPI", "numpy", events=[{"introduced": "0"}, {"fixed": "2.4.6"}]),
    "introduced later": _record("PyPI", "numpy", events=[{"introduced": "2.4.7"}]),
    "another ecosystem": _record("npm", "numpy", events=[{"introduced": "0"}]),
    "another release of Debian": _record("Debian:11", "openssl", events=[{"introduced": "0"}]),
    "withdrawn": _record("PyPI", "numpy", events=[{"introduced": "0"}], withdrawn="2026-01-01T00:00:00Z"),
    "the binary package's name": _record("Debian:12", "libssl3", events=[{"introduced": "0"}]),
    "fixed in Debian": _record("Debian:12", "openssl", events=[{"introduced": "0"}, {"fixed": "3.0.22-1~deb12u2"}]),
}


@pytest.mark.parametrize("record", HITS.values(), ids=HITS)
def test_an_affected_package_is_found(snapshot, record):
    report = find_vulnerabilities(INVENTORY, snapshot=snapshot(record), now=NOW)
    assert [reason.code for reason in report.affected] == ["vulnerable"]
    assert report.unknown == ()


@pytest.mark.parametrize("record", MISSES.values(), ids=MISSES)
def test_others_are_not(snapshot, record):
    report = find_vulnerabilities(INVENTORY, snapshot=snapshot(record), now=NOW)
    assert (report.affected, report.unknown) == ((), ())


UNKNOWN = {
    "no folder": lambda write: write().joinpath("nowhere"),
    "no records": lambda write: write(),
    "no date": lambda write: write(OTHER, about={"version": 1, "ecosystems": ["PyPI", "Debian:12"]}),
    "too old": lambda write: write(OTHER, created="2026-11-14T00:00:00Z"),
    "from the future": lambda write: write(OTHER, created="2026-11-23T00:00:00Z"),
    "an ecosystem is missing": lambda write: write(OTHER, ecosystems=["PyPI"]),
    "a record is cut off": lambda write: write(OTHER, '{"id": "OSV'),
    "a record of another shape": lambda write: write(OTHER, '{"id": "OSV-2", "affected": [{"ranges": []}]}'),
    "a version that cannot be ordered": lambda write: write(_record("PyPI", "numpy", events=[{"introduced": "x-y"}])),
}


@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN)
def test_what_cannot_be_known_is_said(snapshot, make):
    report = find_vulnerabilities(INVENTORY, snapshot=make(snapshot), now=NOW)
    assert {reason.code for reason in report.unknown} == {"vulnerabilities-unknown"}


@pytest.mark.parametrize(("until", "is_accepted"), [(date(2026, 11, 22), True), (date(2026, 11, 21), False)])
def test_an_acceptance_ends(snapshot, until, is_accepted):
    acceptance = Acceptance(identity="OSV-1", reason="not reachable", until=until)
    report = find_vulnerabilities(
        INVENTORY, snapshot=snapshot(HITS["an open range"]), now=NOW, acceptances=[acceptance]
    )
    assert bool(report.affected) is not is_accepted
    assert report.accepted == (("OSV-1",) if is_accepted else ())


VERSIONS = (
    "0",
    "1.0",
    "1.0-1",
    "1.0-1+b1",
    "1.0~rc1-1",
    "1.0+dfsg-1",
    "1:0.5",
    "1.10",
    "1.9",
    "1.0a",
    "1.0-1~deb12u2",
    "2.36-9+deb12u14",
    "~~",
    "~",
    "a",
)


@pytest.mark.system
def test_debian_versions_are_ordered_as_dpkg_does():
    if shutil.which("dpkg") is None:
        pytest.skip("dpkg is missing")
    for left, right in itertools.combinations(VERSIONS[:-3], 2):
        result = subprocess.run(["dpkg", "--compare-versions", left, "lt", right], check=False).returncode == 0
        assert (compare_debian_versions(left, right) < 0) is result, (left, right)
        assert (compare_debian_versions(right, left) > 0) is result, (left, right)
