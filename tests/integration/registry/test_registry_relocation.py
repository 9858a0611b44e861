"""MLflow's artefacts are found again when the project's state lies in another folder, as after a restore."""

from pathlib import Path

import mlflow
import pytest

from mlops.registry.mlflow_backup import relocate_mlflow


@pytest.mark.filterwarnings("ignore")
def test_a_model_is_fetched_from_where_its_artefacts_went(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "mlflow").mkdir(parents=True)
    client = mlflow.MlflowClient(f"sqlite:///{old}/mlflow/mlflow.sqlite")
    experiment = client.create_experiment("p", artifact_location=(old / "mlflow" / "artifacts").as_uri())
    run = client.create_run(experiment)
    (tmp_path / "model.onnx").write_text("weights")
    client.log_artifact(run.info.run_id, str(tmp_path / "model.onnx"), "model")
    client.create_registered_model("p")
    client.create_model_version("p", f"{run.info.artifact_uri}/model", run.info.run_id)
    neighbour = client.create_experiment("other", artifact_location=(tmp_path / "older" / "x").as_uri())
    old.rename(new)
    assert relocate_mlflow(new / "mlflow" / "mlflow.sqlite", old=old, new=new) >= 3
    moved = mlflow.MlflowClient(f"sqlite:///{new}/mlflow/mlflow.sqlite")
    version = moved.get_model_version("p", "1")
    assert version.source.startswith(new.as_uri())
    fetched = moved.download_artifacts(version.run_id, "model/model.onnx", str(tmp_path))
    assert Path(fetched).read_text() == "weights"
    assert moved.get_experiment(neighbour).artifact_location == (tmp_path / "older" / "x").as_uri()
