"""What `training/digits.py` promises beside the trainer contract; `mlops trainer check digits` runs it too."""

from pathlib import Path

import pytest
import torch

from mlops.training.trainer import load_trainer

PARAMS = {"columns": {"image": 0}, "classes": 10, "channels": 4, "dropout": 0.2}


@pytest.fixture(scope="module")
def digits():
    return load_trainer(Path(__file__).parents[3] / "training" / "digits.py")


@pytest.fixture
def images():
    return torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def test_an_image_is_answered_alike_whatever_images_lie_beside_it(digits, images):
    torch.manual_seed(1)
    model = digits.model(PARAMS).eval()
    alone = torch.cat([model({"image": images[n : n + 1]}) for n in range(len(images))])
    assert alone.shape == (5, 10)
    assert torch.allclose(model({"image": images}), alone, atol=1e-5)


def test_images_that_are_not_moved_stay_as_they_are(digits, images):
    assert torch.allclose(digits.moved(images, 0.0), images, atol=1e-4)


def test_moved_images_keep_their_shape_and_their_grey_values_and_differ(digits, images):
    torch.manual_seed(1)
    found = digits.moved(images, 0.1)
    assert found.shape == images.shape
    assert found.min() >= 0 and found.max() <= 1.0 + 1e-5
    assert (found - images).abs().amax((1, 2, 3)).min() > 0.01, "each one is moved"
