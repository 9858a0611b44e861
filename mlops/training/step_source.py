"""The release step `source-check`: the code that will be trusted with data and money was looked at.

It takes under a second and is done each time; its row is kept once per report. A dirty tree is refused unless allowed,
and recorded either way. Leaves to others: what is looked for (source_check.py).
"""

from __future__ import annotations

from mlops.errors import Refusal
from mlops.provenance.digest import digest_code, digest_file
from mlops.provenance.git_repository import open_repository
from mlops.provenance.steps import PreviewBook, StepOutcome, StepRun, Workbench
from mlops.training.source_check import check_source, read_tree_state

KIND = "source-check"


def source_step(bench: Workbench, *, product: str, allow_dirty: bool) -> StepRun | Refusal:
    """Check a product's source.

    Returns:
        The step, or the refusal: a dirty tree, insecure code, a secret, a licence.

    Raises:
        ProjectError: No repository, or no commit yet.
        TrainingError: There is no trainer, or ruff could not run.
    """
    places = bench.places
    tree = read_tree_state(open_repository(places.root))
    refusal = tree.refusal(allow_dirty=allow_dirty)
    if refusal is not None:
        return refusal
    report = check_source(places, product=product)
    refusal = report.refusal()
    if refusal is not None:
        return refusal
    dirty = f", {len(tree.dirty_files)} uncommitted files allowed" if tree.is_dirty else ""
    facts = {
        "summary": f"{report.files_searched} files, {report.distributions} locked distributions, "
        f"{len(report.findings)} remarks{dirty}",
        "commit": tree.commit,
        "is_dirty": tree.is_dirty,
        "dirty_files": list(tree.dirty_files),
        "findings": [finding.render() for finding in report.findings],
    }
    inputs = {
        "trainer": digest_file(places.trainer_file(product)),
        "spec": digest_file(places.sweep_file(product)),
        "lock": digest_file(places.lock_file),
        "code": digest_code("mlops.training.source_check", "mlops.training.source_licences"),
    }
    outcome = StepOutcome(outputs={"report": report.digest}, facts=facts)
    is_preview = isinstance(bench.book, PreviewBook)  # recording a newer commit is no work worth announcing
    return bench.book.run(
        KIND,
        product=product,
        inputs=inputs,
        action=lambda: outcome,
        is_present=lambda record: (
            record.outputs["report"] == report.digest
            and record.facts["is_dirty"] == tree.is_dirty
            and (is_preview or record.facts["commit"] == tree.commit)  # so the chain names the commit with all files
        ),
    )
