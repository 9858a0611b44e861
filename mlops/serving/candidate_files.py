"""Which files of a candidate go into the model layer: the artefact that was judged, whatever kind it is.

Leaves to others: where they lie in the image (layers.py), what reads them there (mlops/serving/server).
"""

from __future__ import annotations

import json

from mlops.errors import ServingError
from mlops.serving.image import ImageRequest
from mlops.training.candidate import ONNX, load_candidate


def read_model_files(request: ImageRequest) -> tuple[bytes, dict[str, bytes]]:
    """The contract, and the files of the model by name.

    Raises:
        ServingError: The candidate is incomplete, of another product, or of another kind than the image's runtime.
    """
    folder = request.candidate_folder
    try:
        contract = (folder / "contract.json").read_bytes()
        product = json.loads(contract).get("product")
        if product != request.product:
            raise ServingError(f"the candidate is of product {product!r}, the image would be {request.product!r}")
        has_onnx = (folder / ONNX).is_file()
        if request.spec.runtime == "onnx":
            if not has_onnx and (folder / "weights.safetensors").is_file():
                raise ServingError(
                    f"the model of {product} was not exported (`export: torch` in its sweep): torch must serve it",
                    hint=f"write `runtime: torch` under `image:` in deploy/{product}.yaml; the image grows by 130 MB",
                )
            return contract, {ONNX: (folder / ONNX).read_bytes()}
        if has_onnx:
            raise ServingError(
                f"the model of {product} was exported: it needs no torch to be served",
                hint=f"leave `runtime: torch` out of deploy/{product}.yaml",
            )
        names = ("weights.safetensors", "trainer.py")
        params = load_candidate(folder).full_params()  # not sorted: a module may go by the order of its columns
        described = json.dumps({"params": params}, indent=1).encode()
        return contract, {**{name: (folder / name).read_bytes() for name in names}, "model.json": described}
    except OSError as error:
        raise ServingError(
            f"{folder} is not a complete candidate: {error.strerror}: {error.filename}", hint="export it again"
        ) from error
