"""`mlops image …` as a person types it, on a project of its own with a tiny candidate."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlops.serving.oci_layout import CONFIG_TYPE, MANIFEST_TYPE, ImageLayout
from mlops.serving.testing import tiny_contract, write_tiny_candidate


@pytest.fixture
def project(tmp_path) -> Path:
    (tmp_path / "datasets.dvc").write_text("outs: []\n")
    for folder in ("training", "deploy"):
        (tmp_path / folder).mkdir()
    (tmp_path / "training/income.yaml").write_text("{}")
    (tmp_path / "deploy/income.yaml").write_text("version: 1\nproduct: income\nimage: {}\n")
    write_tiny_candidate(tmp_path / "candidate", contract=tiny_contract())
    return tmp_path


def _mlops(project, *arguments):
    environment = {**os.environ, "HOME": str(project)}
    environment.pop("MLOPS_LEDGER", None)
    return subprocess.run(
        [sys.executable, "-m", "mlops.cli", "image", *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def _put(project, reference, text):
    layout = ImageLayout(project / ".mlops/images")
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": layout.add_blob(b"{}"), "size": 2},
        "layers": [{"mediaType": "x.tar", "digest": layout.add_blob(text), "size": len(text)}],
    }
    return layout.put_image(manifest, reference=reference, annotations={})


def test_a_dry_run_says_what_would_be_built(project):
    done = _mlops(project, "build", "--candidate", "candidate", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would build income:candidate-" in done.stdout
    assert not (project / ".mlops/images").exists()


def test_an_unknown_field_of_the_spec_is_named_with_its_line(project):
    (project / "deploy/income.yaml").write_text("version: 1\nproduct: income\nimage:\n  shell: bash\n")
    done = _mlops(project, "build", "--candidate", "candidate")
    assert done.returncode == 2
    assert "income.yaml:4: image.shell: unknown field" in done.stderr


def test_images_are_listed_and_shown_and_unknown_ones_named(project):
    digest = _put(project, "income:1", b"one")
    assert [item["digest"] for item in json.loads(_mlops(project, "list", "--json").stdout)] == [digest]
    newest = _put(project, "income:10", b"ten")
    for reference in ("income:9", "income:candidate-1", "other:11"):
        _put(project, reference, reference.encode())
    assert json.loads(_mlops(project, "show", "income@latest", "--json").stdout)["digest"] == newest
    done = _mlops(project, "show", "income@2")
    assert done.returncode == 7
    assert "there is no image income@2" in done.stderr
    assert "income:1" in done.stderr


def test_a_prune_keeps_what_an_environment_wants(project):
    digests = {number: _put(project, f"income:{number}", b"%d" % number) for number in (1, 2, 3)}
    (project / "deploy/desired").mkdir()
    planned = json.loads(_mlops(project, "prune", "--keep", "1", "--dry-run", "--json").stdout)
    assert planned["removed"] == ["income:1", "income:2"]
    assert len(ImageLayout(project / ".mlops/images").images()) == 3
    done = _mlops(project, "prune", "--keep", "1")
    assert done.returncode == 0, done.stderr
    assert [image.digest for image in ImageLayout(project / ".mlops/images").images()] == [digests[3]]


@pytest.mark.parametrize("arguments", [("build",), ("build", "income@1", "--candidate", "candidate")])
def test_one_source_is_named(project, arguments):
    assert _mlops(project, *arguments).returncode == 2
