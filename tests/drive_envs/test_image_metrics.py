from math import inf, log10
from pathlib import Path

import cv2
import pytest
import torch

from drive_envs.image_metrics import load_lpips, lpips_distance, psnr

WEIGHTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "lpips"
needs_weights = pytest.mark.skipif(
    not WEIGHTS.is_dir(), reason=f"no LPIPS weights in {WEIGHTS}, and tests do not download"
)


def picture(name):
    image = cv2.imread(str(WEIGHTS / name))
    assert image is not None
    return torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)


def test_psnr_is_its_definition():
    truth = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    images = truth + torch.tensor([0, 5], dtype=torch.uint8).reshape(2, 1, 1, 1)
    expected = torch.tensor([inf, 20 * log10(255 / 5)], dtype=torch.float64)
    torch.testing.assert_close(psnr(images, truth), expected)


def test_psnr_looks_only_under_the_mask():
    truth = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    images = truth.clone()
    images[..., 0, 0], images[..., 1, 1] = 10, 200
    mask = torch.tensor([[[True, True], [False, False]]])
    expected = torch.tensor([10 * log10(255**2 / 50)], dtype=torch.float64)
    torch.testing.assert_close(psnr(images, truth, mask), expected)
    assert psnr(images, truth, torch.zeros_like(mask)).isnan().all()


@needs_weights
@pytest.mark.slow
def test_lpips_gives_the_published_values():
    network = load_lpips(WEIGHTS)
    images = torch.stack([picture("ex_p0.png"), picture("ex_p1.png")])
    truth = picture("ex_ref.png").expand_as(images)
    distance = lpips_distance(network, images, truth)
    torch.testing.assert_close(distance, torch.tensor([0.7219, 0.1376]), atol=5e-5, rtol=0)
    assert lpips_distance(network, truth, truth).eq(0).all()


@needs_weights
@pytest.mark.slow
def test_both_backbones_prefer_the_same_picture():
    network = load_lpips(WEIGHTS, "squeeze")
    images = torch.stack([picture("ex_p0.png"), picture("ex_p1.png")])
    distance = lpips_distance(network, images, picture("ex_ref.png").expand_as(images))
    assert distance[1] < distance[0]


@pytest.mark.slow
def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no LPIPS weights at .*alexnet_features\.safetensors"):
        load_lpips(tmp_path)
