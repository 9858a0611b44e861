"""The release step `probe`: the image is booted and tried out; a bad one is refused, with every reason.

Leaves to others: the trying (probe.py), memoisation and signing (mlops/provenance/steps.py).
"""

from __future__ import annotations

from mlops.errors import Refusal
from mlops.files import write_atomically
from mlops.provenance.digest import canonical_json, digest_code, hex_of
from mlops.provenance.sql_steps import StepRecord
from mlops.provenance.steps import StepOutcome, StepRun, Workbench
from mlops.serving.probe import ProbeRequest, ProbeResult, probe_image
from mlops.serving.runtime import Runtime

KIND = "probe"


def probe_step(bench: Workbench, *, product: str, image: str, candidate: str, runtime: Runtime) -> StepRun | Refusal:
    """Probe once per image, candidate and runtime; a failed probe is not recorded as done.

    Args:
        bench: What steps work with.
        product: What is served.
        image: Digest of the image's manifest.
        candidate: Digest of the judged candidate.
        runtime: Boots the image.

    Raises:
        ServingError: The image or the candidate cannot be read.
        EnvironmentFault: The runtime does not work on this machine.
    """

    places, clock = bench.places, bench.clock

    def probe() -> StepOutcome | Refusal:
        folder = places.candidates / hex_of(candidate)
        result = probe_image(
            ProbeRequest(layout=places.images, digest=image, candidate_folder=folder, clock=clock), runtime=runtime
        )
        path = places.evidence / hex_of(result.digest) / "probe.json"
        write_atomically(path, canonical_json(result.to_json()))
        if not result.is_go:
            return Refusal(reasons=result.reasons)
        facts = {
            "summary": _summarise(result),
            "runtime": result.runtime,
            "verdict": result.verdict,
            "openapi_fuzz": result.facts["openapi_fuzz"],
            "latency_p99_seconds": result.facts["latency_p99_seconds"],
            "report": str(path.relative_to(places.root)),
        }
        return StepOutcome(outputs={"probe": result.digest}, facts=facts)

    def is_present(record: StepRecord) -> bool:
        return (places.root / record.facts["report"]).is_file() and record.facts["runtime"] == runtime.name

    inputs = {"image": image, "candidate": candidate, "code": digest_code("mlops.serving")}
    return bench.book.run_or_refuse(KIND, product=product, inputs=inputs, action=probe, is_present=is_present)


def _summarise(result: ProbeResult) -> str:
    facts = result.facts
    fuzzed = facts["openapi_fuzz"]
    more = f"{fuzzed['cases']} fuzzed" if fuzzed["ran"] else "none fuzzed (no schemathesis)"
    return (
        f"{result.verdict} in {result.runtime}: ready in {facts['ready_seconds']:.2f} s, "
        f"{facts['golden_requests']} golden and {facts['malformed_requests']} malformed requests, {more}, "
        f"99 % within {facts['latency_p99_seconds'] * 1000:.1f} ms"
    )
