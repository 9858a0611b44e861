"""MLflow's own scoring client against the actual image, over TCP."""

import shutil
import socket
import tempfile
from pathlib import Path

import pandas as pd
import pytest

from mlops.serving.runtime import RunRequest
from mlops.serving.runtime_process import ProcessRuntime

_COLUMNS = {
    "age": [39, 51],
    "hours": [40.5, 20.0],
    "gain": [2174.0, 0.0],
    "workclass": ["State-gov", "Private"],
    "sex": ["Male", "Female"],
    "history": [[[0.0, 0.0, 0.0], [0.5, 0.0, 1.0]], [[0.0] * 3, [-1.0] * 3]],
}


@pytest.fixture
def port(bakery, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    runtime, sockets = ProcessRuntime(tmp_path), Path(tempfile.mkdtemp(prefix="sock-"))
    instance = runtime.start(
        RunRequest(
            name="clients",
            layout=bakery.request.layout,
            digest=bakery.built.digest,
            socket_folder=sockets,
            tcp_port=number,
        )
    )
    yield number
    runtime.stop(instance, timeout_seconds=10)
    shutil.rmtree(sockets)


@pytest.mark.filterwarnings("default")  # mlflow warns about its own type hints at import
def test_mlflows_own_client_is_answered_and_refused(port):
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    client = ScoringServerClient("127.0.0.1", port)
    client.wait_server_ready(timeout=60)
    assert client.get_version()
    answer = client.invoke(pd.DataFrame(_COLUMNS)).get_predictions()
    assert list(answer["label"].isin(["<=50K", ">50K"])) == [True, True]
    assert [round(sum(row), 5) for row in answer["probabilities"]] == [1, 1]
    with pytest.raises(Exception, match="error code 400"):
        client.invoke(pd.DataFrame({**_COLUMNS, "age": [39, 500]}))
