"""schemathesis reads the server's own OpenAPI document and looks for answers that contradict it."""

import json
import os

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error, response_schema_conformance, status_code_conformance

from mlops.provenance.digest import canonical_json
from mlops.serving.golden import make_golden_requests, render_golden
from mlops.serving.server.application import Application
from mlops.serving.server.onnx_model import load_models
from mlops.serving.server.settings import Settings
from mlops.serving.testing import tiny_contract, write_tiny_candidate

_EXAMPLES = 25 * int(os.environ.get("MLOPS_TEST_SCALE", "1"))


@pytest.fixture(scope="module")
def application(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz")
    folder, contract = root / "income/1", tiny_contract()
    write_tiny_candidate(folder, contract=contract)
    golden = render_golden(make_golden_requests(contract), contract=contract)
    (folder / "golden.json").write_bytes(canonical_json(golden))
    (folder / "evidence.json").write_text(json.dumps({"candidate": "sha256:" + "c" * 64}))
    used = Settings(models=str(root), request_log="none")
    models = load_models(used)
    for model in models:
        model.warm_up()
    yield Application(models, used)
    for model in models:
        model.close()


@pytest.mark.filterwarnings("default")
def test_no_answer_contradicts_the_document(application):
    schema = schemathesis.openapi.from_asgi("/openapi.json", application)
    checks = (not_a_server_error, status_code_conformance, response_schema_conformance)
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=_EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def attempt(case):
            nonlocal tried
            tried += 1
            case.validate_response(case.call(), checks=checks)

        attempt()
    assert tried > 50
