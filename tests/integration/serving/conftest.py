"""One tiny image, built once per session from the real locks."""

import http.client
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mlops.serving.image import BuiltImage, ImageRequest, ImageSpec, build_image
from mlops.serving.testing import write_tiny_candidate

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Bakery:
    """What a build needs, and the image it made."""

    request: ImageRequest
    built: BuiltImage
    candidate: Path

    def request_with(self, **changes) -> ImageRequest:
        return replace(self.request, **changes)


@pytest.fixture(scope="session")
def bakery(tmp_path_factory) -> Bakery:
    # Content-addressed and only ever added to, so that tests and releases may share it.
    downloads = Path(os.environ.get("MLOPS_TEST_STORE") or ROOT / ".mlops" / "store")
    folder = tmp_path_factory.mktemp("bakery")
    candidate = folder / "candidate"
    digest = write_tiny_candidate(candidate)
    if shutil.which("apt-get") is None:
        pytest.skip("apt is missing: the base layer cannot be fetched")
    request = ImageRequest(
        candidate_folder=candidate,
        product="income",
        version="1",
        evidence={"candidate": digest, "gate": "sha256:" + "9" * 64},
        spec=ImageSpec(),
        layout=folder / "images",
        downloads=downloads,
        cache=folder / "cache",
    )
    return Bakery(request=request, built=build_image(request), candidate=candidate)


@pytest.fixture
def ask_ready():
    """Asks the port whether the server behind it is ready; gives the status."""

    def ask(port: int) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status
        finally:
            connection.close()

    return ask
