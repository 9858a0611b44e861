"""Gathering what a promotion is decided on: ledger, chain, approvals, consumers, and what changed since the last one.

Leaves to others: the decision (promotion.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import sqlalchemy as sa

from mlops.deploy import sql_deployments
from mlops.deploy.admission import find_image_damage
from mlops.deploy.approval import read_approval
from mlops.deploy.consumer import ConsumerSpec, find_contract_problems, load_consumers
from mlops.deploy.desired_state import DesiredState
from mlops.deploy.environment import EnvironmentSpec
from mlops.deploy.erased import load_erased
from mlops.deploy.erasure_fence import find_fence
from mlops.deploy.evidence_changes import EvidenceChange, compare_files, compare_policy
from mlops.deploy.promotion import ConsumerFact, PromotionFacts, Release
from mlops.deploy.roles import RolesSpec, load_roles
from mlops.deploy.site import Site
from mlops.deploy.sql_deployments import FAILED
from mlops.deploy.state_keeper import load_desired_state
from mlops.errors import MlopsError, ProvenanceError
from mlops.provenance.digest import hex_of
from mlops.provenance.git_commits import AUTHOR, read_commit
from mlops.provenance.git_repository import GitRepository, open_repository
from mlops.provenance.lineage import walk_back
from mlops.provenance.reference import parse_reference
from mlops.provenance.sql_steps import StepRecord, find_steps, find_steps_of_digest
from mlops.provenance.verify import verify_chain

_MACHINE_ADDRESS = AUTHOR.split("<")[1].rstrip(">")


def find_release(connection: sa.Connection, reference: str) -> Release:
    """The release that `PRODUCT@NUMBER` or `PRODUCT@ALIAS` names.

    Raises:
        ProjectError: Not of that form.
        ProvenanceError: No such version, or it has no image yet.
    """
    parsed = parse_reference(reference)
    if parsed.kind != "version":
        raise ProvenanceError(
            f"{reference!r} names no model version", hint="write PRODUCT@NUMBER, for instance income@3"
        )
    registrations = list(find_steps(connection, kind="registration", product=parsed.name))
    wanted = [
        step for step in registrations if parsed.selector in (str(step.facts.get("number")), step.facts.get("alias"))
    ]
    if not wanted:
        known = sorted({int(step.facts["number"]) for step in registrations})
        raise ProvenanceError(
            f"there is no {reference}",
            hint=f"versions of {parsed.name}: {', '.join(map(str, known)) or 'none; `mlops release` makes one'}",
        )
    registration = max(wanted, key=lambda step: int(step.facts["number"]))
    version = registration.outputs["version"]
    images = [step for step in find_steps_of_digest(connection, version, direction="in") if step.kind == "image"]
    number = int(registration.facts["number"])
    if not images:
        raise ProvenanceError(
            f"{parsed.name}@{number} has no image yet", hint=f"`mlops release {parsed.name}` builds it"
        )
    return Release(
        product=parsed.name,
        number=number,
        image=images[0].outputs["image"],
        candidate=registration.inputs["candidate"],
        gate=registration.inputs["gate"],
        version=version,
        commit=_find_commit(connection, version),
    )


def gather_facts(
    site: Site,
    rules: EnvironmentSpec,
    release: Release,
    *,
    fences: tuple[str, ...] = (),
    tolerated: frozenset[tuple[str, bytes]] = frozenset(),
    erased: Mapping[str, str] | None = None,
) -> PromotionFacts:
    """Everything that the decision rests on.

    Args:
        site: Where.
        rules: The environment's.
        release: What is to be promoted.
        fences: What forbids it whatever people say (from upper rooms), besides withdrawals of people behind it.
        tolerated: People (dataset, keyed hash) whose withdrawal does not forbid it; see `promote`.
        erased: Digest to the erasure certificate under which it was purged; by default as the ledger's signed
            purges say.

    Raises:
        ProjectError: `deploy/roles.yaml` or a consumer file has problems.
    """
    roles = load_roles(site.places)
    now_us = site.clock.now_us()
    with site.ledger.read() as connection:
        if erased is None:
            erased = {it.digest: it.under for it in load_erased(connection, keyring=site.load_keyring()).values()}
        envelopes = sql_deployments.load_approval_envelopes(connection, product=release.product, environment=rules.name)
        barred = sql_deployments.load_barred(connection, rules.name).get(release.image)
        served = {
            row.environment
            for row in sql_deployments.load_deployments(connection, product=release.product)
            if row.image == release.image and row.outcome != FAILED
        }
        gate = _find_verdict(connection, "gate", release.gate, direction="out")
        probe = _find_verdict(connection, "probe", release.image, direction="in")
        desired = load_desired_state(site, rules.name)
        base = _find_serving_commit(connection, desired, release.product)
        withdrawn = find_fence(connection, site.places, release.image).render_reasons(tolerated=tolerated)
    return PromotionFacts(
        release=release,
        gate_verdict=gate,
        probe_verdict=probe,
        chain_problems=find_chain_problems(site, release, erased=erased),
        authors=find_authors(site, roles, release, base=base),
        approvals=tuple(
            read_approval(text, roles=roles, role=rules.approvals.role, now_us=now_us) for text in envelopes
        ),
        consumers=judge_consumers(site, rules.name, release),
        changes=(
            *find_changes(site, roles, release, base=base),
            *find_rule_changes(site, roles, rules.name, base=base),
        ),
        barred=(barred.at_us, barred.why) if barred else None,
        served_well_in=frozenset(served),
        fences=(*fences, *withdrawn),
        desired=desired,
    )


def find_chain_problems(site: Site, release: Release, *, erased: Mapping[str, str]) -> tuple[str, ...]:
    """Broken links of the chain behind an image and its probe; an erased one breaks it for serving."""
    rules = site.load_chain_rules(erased=erased)
    with site.ledger.read() as connection:
        probes = [
            digest
            for step in find_steps_of_digest(connection, release.image, direction="in")
            if step.kind == "probe"
            for digest in step.outputs.values()
        ]
        report = verify_chain(connection, (release.image, *probes[:1]), rules=rules)
    problems = [f"{link.step_kind or 'chain'} {link.name}: {link.text}" for link in report.broken]
    problems += [
        f"{link.name} {link.text}"
        for link in report.links
        if link.status == "erased" and link.name in ("candidate", "image", "manifest")
    ]
    damage = find_image_damage(site.places, release.image)
    if damage is not None and not problems:
        problems.append(damage)
    return tuple(dict.fromkeys(problems))


def judge_consumers(site: Site, environment: str, release: Release) -> tuple[ConsumerFact, ...]:
    """Every live consumer against the contract of the version's candidate."""
    consumers = load_consumers(site.places, product=release.product, environment=environment)
    path = site.places.candidates / hex_of(release.candidate) / "contract.json"
    try:
        contract = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return tuple(
            ConsumerFact(entry.service, entry.release, (f"cannot be judged: {path} is missing",)) for entry in consumers
        )
    return tuple(_judge_consumer(entry, contract) for entry in consumers)


def _judge_consumer(consumer: ConsumerSpec, contract: Mapping[str, object]) -> ConsumerFact:
    return ConsumerFact(consumer.service, consumer.release, find_contract_problems(consumer, contract))


def ingredient_paths(product: str) -> tuple[str, ...]:
    """What people write that decides how a version of a product turns out."""
    return (
        f"training/{product}.py",
        f"training/{product}.yaml",
        f"evaluation/{product}.yaml",
        "evaluation/checks",
        "evaluation/incidents",
        f"datasets/{product}.yaml",
        "datasets.dvc",
        f"deploy/{product}.yaml",
        "requirements.lock",
    )


def find_authors(site: Site, roles: RolesSpec, release: Release, *, base: str | None) -> frozenset[str]:
    """People who wrote what is promoted: since the version that serves, else the last author of each ingredient."""
    if release.commit is None:
        return frozenset()
    try:
        repository = open_repository(site.places.root)
        addresses = {_address(read_commit(repository, release.commit).author)}
        if base is not None:
            addresses |= set(repository.authors_of(*ingredient_paths(release.product), base=base, head=release.commit))
        else:
            commits = {
                repository.last_commit_of(path, revision=release.commit) for path in ingredient_paths(release.product)
            }
            addresses |= {_address(read_commit(repository, commit).author) for commit in commits if commit}
    except MlopsError:
        return frozenset()  # a commit that is gone is a broken chain, named there
    return frozenset(roles.person_of_author(address) for address in addresses if address != _MACHINE_ADDRESS)


def find_changes(site: Site, roles: RolesSpec, release: Release, *, base: str | None) -> tuple[EvidenceChange, ...]:
    """Changes to policy, checks, cases and what golden requests are made from, since the serving version's commit."""
    if base is None or release.commit is None or base == release.commit:
        return ()
    try:
        repository = open_repository(site.places.root)
        policy = f"evaluation/{release.product}.yaml"
        found = list(
            compare_policy(
                policy,
                old=_read_text(repository, policy, base),
                new=_read_text(repository, policy, release.commit),
                writers=_writers(repository, roles, policy, base, release.commit),
            )
        )
        for kind, folder in (("check", "evaluation/checks/"), ("case", "evaluation/incidents/")):
            old, new = (_read_folder(repository, folder, commit) for commit in (base, release.commit))
            writers = {
                path: _writers(repository, roles, path, base, release.commit) for path in old.keys() | new.keys()
            }
            found += compare_files(kind, old=old, new=new, writers=writers)
        return (*found, *_find_golden_changes(repository, roles, release, base))
    except MlopsError as error:
        text = f"changes since {base[:12]} cannot be read: {error.message}"
        return (EvidenceChange("evaluation", text, is_stricter=False, writers=()),)


def find_rule_changes(
    site: Site, roles: RolesSpec, environment: str, *, base: str | None
) -> tuple[EvidenceChange, ...]:
    """Changes to the environment's own rules and to who may do what, up to now; what nobody committed, nobody wrote."""
    found: list[EvidenceChange] = []
    paths = (f"deploy/environments/{environment}.yaml", "deploy/roles.yaml")
    try:
        repository = open_repository(site.places.root)
        for path in repository.dirty_paths(*paths):
            found.append(
                EvidenceChange(path, "is used as it lies here, not as committed", is_stricter=False, writers=())
            )
        for path in paths if base is not None else ():
            assert base is not None
            old, new = (_read_text(repository, path, commit) for commit in (base, "HEAD"))
            found += compare_policy(path, old=old, new=new, writers=_writers(repository, roles, path, base, "HEAD"))
    except MlopsError as error:
        text = f"changes since {(base or '')[:12]} cannot be read: {error.message}"
        found.append(EvidenceChange(paths[0], text, is_stricter=False, writers=()))
    return tuple(found)


def _find_golden_changes(
    repository: GitRepository, roles: RolesSpec, release: Release, base: str
) -> tuple[EvidenceChange, ...]:
    """Golden requests are drawn from the contract, which follows from the dataset's recipe."""
    path = f"datasets/{release.product}.yaml"
    assert release.commit is not None
    old, new = (_read_text(repository, path, commit) for commit in (base, release.commit))
    if old == new:
        return ()
    text = "columns or ranges changed, and with them the golden requests"
    writers = _writers(repository, roles, path, base, release.commit)
    return (EvidenceChange(path, text, is_stricter=False, writers=writers),)


def _find_commit(connection: sa.Connection, version: str) -> str | None:
    steps = walk_back(connection, (version,)).steps
    commits = [
        step.facts["commit"]
        for kind in ("source-check", "sweep")
        for step in steps
        if step.kind == kind and step.facts.get("commit")
    ]
    return str(commits[0]) if commits else None


def _find_serving_commit(connection: sa.Connection, desired: DesiredState, product: str) -> str | None:
    """Commit of the version that is desired now."""
    release = desired.find_product(product)
    if release is None:
        return None
    steps = find_steps_of_digest(connection, release.versions[0].image, direction="out")
    image = next((step for step in steps if step.kind == "image"), None)
    return _find_commit(connection, image.inputs["version"]) if image is not None else None


def _find_verdict(connection: sa.Connection, kind: str, digest: str, *, direction: str) -> str:
    steps = [step for step in find_steps_of_digest(connection, digest, direction=direction) if step.kind == kind]
    return _verdict(steps[0]) if steps else "missing"


def _verdict(step: StepRecord) -> str:
    """A gate step is recorded only when the candidate may pass; what stayed undecided was allowed by the policy."""
    verdict = str(step.facts.get("verdict", "missing"))
    return "PASS" if step.kind == "gate" and verdict == "UNDECIDED" else verdict


def _writers(repository: GitRepository, roles: RolesSpec, path: str, base: str, head: str) -> tuple[str, ...]:
    addresses = repository.authors_of(path, base=base, head=head)
    return tuple(sorted({roles.person_of_author(address) for address in addresses}))


def _read_text(repository: GitRepository, path: str, commit: str) -> str | None:
    try:
        return repository.read_file(path, revision=commit).decode(errors="replace")
    except ProvenanceError:
        return None


def _read_folder(repository: GitRepository, folder: str, commit: str) -> dict[str, bytes]:
    return {
        path: repository.read_file(path, revision=commit) for path in repository.list_files(folder, revision=commit)
    }


def _address(author: str) -> str:
    return author.rsplit("<", 1)[-1].rstrip(">")
