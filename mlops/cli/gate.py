"""`mlops gate`: judge a candidate, and show what was said about one. Leaves to others: judging (mlops/evaluation)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlops.cli.rendering import emit_json, refuse, render_table
from mlops.errors import ProjectError, Reason, Refusal

if TYPE_CHECKING:
    from mlops.evaluation.gate import GateRequest, OpenCrew
    from mlops.project.opening import Project


@click.group()
def gate() -> None:
    """Run the evaluation gate and show its verdicts."""


@gate.command("run")
@click.argument("product", required=False)
@click.option("--candidate", type=click.Path(path_type=Path, exists=True, file_okay=False), help="A candidate folder.")
@click.option("--champion", type=click.Path(path_type=Path, exists=True, file_okay=False), help="To compare with.")
@click.option("--policy", type=click.Path(path_type=Path), help="Instead of evaluation/<product>.yaml.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of every sample and attack.")
@click.option("--local", "is_local", is_flag=True, help="Use processes of this machine, not the policy's `machines`.")
@click.option("--self-test", is_flag=True, help="Judge planted models with known defects instead.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--dry-run", is_flag=True, help="Say what would be judged, and on how many rows.")
def run(
    product: str | None,
    candidate: Path | None,
    champion: Path | None,
    policy: Path | None,
    seed: int,
    is_local: bool,
    self_test: bool,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Judge the newest candidate of PRODUCT, or a candidate folder; exit 1 with reasons on a no."""
    if self_test:
        _run_self_test(seed=seed, as_json=as_json)
        return
    from mlops.deploy.gate_signatures import gate_verifier
    from mlops.deploy.roles import load_roles
    from mlops.evaluation import judging, report  # loads scipy and the model's libraries
    from mlops.project.opening import open_project
    from mlops.training.candidate import load_candidate

    if (product is None) == (candidate is None):
        raise ProjectError("name a product or a candidate folder", hint="mlops gate run PRODUCT | --candidate DIR")
    project = open_project()
    folder = candidate or judging.find_newest_candidate(project.places, product=project.require_product(product or ""))
    request = judging.prepare_request(
        project.places,
        folder,
        clock=project.clock,
        champion_folder=champion,
        policy_file=policy,
        seed=seed,
        ledger=project.ledger,
        verify_signature=gate_verifier(
            load_roles(project.places), product=load_candidate(folder).product, now_us=project.clock.now_us()
        ),
    )
    if dry_run:
        click.echo(f"would judge {folder} by {len(request.policy.checks)} checks on {request.test.num_rows:,} rows")
        return
    look = judging.spend_look_of(project.ledger, request)
    if isinstance(look, Refusal):
        refuse(look, what="this test set has been looked at too often")
    crew = None if is_local or request.policy.machines is None else _choose_crew(project, request)
    judgement = judging.judge_candidate(project.places, request, open_crew=crew)
    if isinstance(judgement, Refusal):
        refuse(judgement, what="the checks could not all be heard")
    if as_json:
        emit_json(judgement.result.to_json())
    else:
        click.echo(report.render_text(judgement.result))
        click.echo(f"page   {judgement.folder / 'gate.html'}")
    if not judgement.result.is_go:
        refuse(
            _refusal(judgement.result.to_json()),
            what=f"candidate {judgement.result.candidate[7:19]} may not be released",
        )


@gate.command("sign")
@click.argument("product")
@click.argument("about")
@click.option(
    "--until", required=True, type=click.DateTime(["%Y-%m-%d"]), help="First day on which it no longer counts."
)
@click.option("--reason", required=True, help="Why; it stands in every report.")
@click.option("--key", "person", help="Whose key signs; needed when several people's keys lie here.")
@click.option("--dry-run", is_flag=True, help="Show what would be signed.")
def sign(product: str, about: str, until: datetime, reason: str, person: str | None, *, dry_run: bool) -> None:
    """Waive the undecided check ABOUT for PRODUCT's newest candidate, or state that the clause ABOUT is kept."""
    from mlops.cli.approve import only_person
    from mlops.deploy.gate_signatures import object_to_signing
    from mlops.deploy.roles import load_roles
    from mlops.evaluation import judging, signed_files, store
    from mlops.evaluation.policy import find_owner, load_policy
    from mlops.evaluation.signed_answers import Signed
    from mlops.project.opening import open_project
    from mlops.provenance.keys import load_key
    from mlops.training.candidate import load_candidate

    project = open_project()
    places = project.places
    policy = load_policy(places.policy_file(project.require_product(product)))
    owner, is_check = find_owner(policy, about)
    newest = load_candidate(judging.find_newest_candidate(places, product=product)).digest if is_check else None
    name = person or only_person(places.keys_folder)
    until_us = int(until.replace(tzinfo=UTC).timestamp()) * 1_000_000
    answer, key = Signed(about, newest, by=name, reason=reason, until_us=until_us), load_key(places.keys_folder, name)
    what = f"a waiver of {about} for candidate {newest[7:19]}" if newest else f"a statement that {about} is kept"
    objections = object_to_signing(
        answer,
        owner=owner,
        public=key.public,
        verdict=store.find_verdict(places, product=product, candidate=newest, check=about) if newest else None,
        roles=load_roles(places),
        now_us=project.clock.now_us(),
    )
    if objections:
        refuse(Refusal(objections), what=f"{what} by {name} would not count")
    if dry_run:
        click.echo(f"would sign as {name} {what}, until {until.date()}")
        return
    path = signed_files.keep_answer(
        places, signed_files.sign_answer(answer, product=product, policy=policy.digest, key=key), product=product
    )
    click.echo(f"{name} signed {what}, until {until.date()}: {path.relative_to(places.root)}")
    click.echo("next: commit it, and run the gate again")


@gate.command("show")
@click.argument("reference")
@click.option("--card", "is_card", is_flag=True, help="Print the model card (Markdown) instead.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as JSON.")
def show(reference: str, is_card: bool, as_json: bool) -> None:
    """Show the newest result of a product, or the one with this digest (`sha256:…` or its first digits)."""
    from mlops.evaluation import store  # loads jinja2
    from mlops.project.opening import open_project

    places = open_project().places
    digits = reference.removeprefix("sha256:")
    folders = [store.find_newest(places, product=reference)] if reference in places.products() else []
    folders += [folder for folder in sorted(places.evidence.glob(f"{digits}*")) if (folder / "gate.json").is_file()]
    found = next((folder for folder in folders if folder is not None), None)
    if found is None:
        raise ProjectError(f"there is no gate result for {reference!r}", hint="run `mlops gate run PRODUCT` first")
    content = store.load_kept(found)
    if as_json:
        emit_json(content)
        return
    shown = found / (store.CARD_FILE if is_card else store.TEXT_FILE)
    if shown.is_file():
        click.echo(shown.read_text(encoding="utf-8").rstrip())
    else:  # kept by an earlier version of this program
        rows = [(check["verdict"], "stops" if check["stops"] else "", check["title"]) for check in content["checks"]]
        click.echo(render_table(("verdict", "", "check"), rows))
    click.echo(f"judged {content['judged_at']}")
    click.echo(f"page   {found / 'gate.html'}")


def _choose_crew(project: Project, request: GateRequest) -> OpenCrew | None:
    from mlops.evaluation.judging import choose_crew  # loads scipy
    from mlops.training.spec import load_sweep_spec

    places = project.places
    budget = load_sweep_spec(places.sweep_file(request.policy.product)).budget
    return choose_crew(places, request, budget=budget, ledger=project.ledger, ids=project.ids, spender=project.person)


def _run_self_test(*, seed: int, as_json: bool) -> None:
    from mlops.clock import SystemClock
    from mlops.evaluation.self_test import run_self_test, run_stability_test  # loads torch

    lines = run_self_test(SystemClock(), seed=seed)
    steady = run_stability_test(SystemClock(), seed=seed)
    if as_json:
        planted = [{"planted": line.planted.name, "right": line.is_right, "said": line.said} for line in lines]
        changed = [{"changed": line.changed, "right": line.is_right} for line in steady]
        emit_json({"planted": planted, "steady": changed})
    else:
        rows = [
            ("right" if line.is_right else "WRONG", line.planted.name, line.planted.expected_check or "-", line.said)
            for line in lines
        ]
        click.echo(render_table(("gate was", "planted", "must be stopped by", "stopped by"), rows))
        click.echo("")
        moved = [("right" if line.is_right else "WRONG", line.changed, line.second[7:19]) for line in steady]
        click.echo(render_table(("gate was", "what must not matter", "result"), moved))
    reasons = [Reason("self-test", f"{it.planted.name}: the gate said {it.said}") for it in lines if not it.is_right]
    reasons += [Reason("not-steady", f"{it.changed} moved the result") for it in steady if not it.is_right]
    if reasons:
        refuse(Refusal(tuple(reasons)), what=f"the gate is wrong about {len(reasons)} planted models or changes")


def _refusal(content: dict[str, Any]) -> Refusal:
    stopping = [check for check in content["checks"] if check["stops"]]
    reasons = [Reason(code=f"{check['name']}:{check['code']}", text=check["explanation"]) for check in stopping]
    return Refusal(tuple(reasons) or (Reason(code="empty-policy", text="the policy has no blocking check"),))
