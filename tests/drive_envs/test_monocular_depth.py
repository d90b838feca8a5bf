import sys

import numpy as np
import pytest

from drive_envs.camera import wide
from drive_envs.depth_sources import DepthError, DepthMaker
from drive_envs.monocular_depth import DepthNetwork, Monocular, UnalignedError, aligned
from drive_envs.recording import Mount, Optics
from drive_envs.virtual_view import View, ground_depth

CAMERA = wide(64, 32)


def truth():
    """Return a road with a wall 20 m off above the horizon, and where the road is."""
    ground = ground_depth(CAMERA)
    depth = np.where(np.isfinite(ground), np.minimum(ground, 20.0), 20.0)
    return depth, ground, ground < 18.0


@pytest.mark.parametrize("predicts", ["inverse", "metres"])
def test_scale_and_shift_are_read_off_the_road(predicts):
    depth, ground, road = truth()
    predicted = (1 / depth - 0.02) / 3.0 if predicts == "inverse" else depth / 2.5
    np.testing.assert_allclose(aligned(predicted, ground, road, predicts), depth, rtol=1e-6)


def test_a_car_on_the_road_does_not_spoil_the_scale():
    depth, ground, road = truth()
    depth[20:28, 28:36] = 5.0
    found = aligned(1 / depth / 3.0 + 0.1, ground, road, "inverse")
    assert np.median(np.abs(found - depth) / depth) < 1e-3


def test_far_away_is_sky():
    depth, ground, road = truth()
    depth[:5] = np.inf
    found = aligned(1 / depth * 2.0, ground, road, "inverse")
    assert np.isinf(found[:5]).all()
    assert np.isfinite(found[10:]).all()


def test_what_does_not_look_like_the_road_is_refused():
    depth, ground, road = truth()
    with pytest.raises(UnalignedError, match="scale -"):
        aligned(depth, ground, road, "inverse")
    noise = np.random.default_rng(0).random(depth.shape)
    with pytest.raises(UnalignedError, match=r"of the road|scale -"):
        aligned(noise, ground, road, "inverse")
    with pytest.raises(UnalignedError, match="0 pixels of road"):
        aligned(1 / depth, ground, np.zeros_like(road), "inverse")


def test_without_a_model_or_transformers_it_says_what_to_do(monkeypatch):
    with pytest.raises(ValueError, match=r"depth.model is empty: give the folder"):
        DepthNetwork(Monocular())
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="needs the package transformers, which is optional"):
        DepthNetwork(Monocular(model="anything"))


@pytest.fixture(scope="module")
def tiny_network(tmp_path_factory):
    """A tiny DPT with random weights, saved as `transformers` saves networks."""
    transformers = pytest.importorskip("transformers", reason="the optional package transformers")
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("depth")
    torch.manual_seed(0)
    config = transformers.DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        reassemble_factors=[4, 2, 1, 0.5],
    )
    transformers.DPTForDepthEstimation(config).save_pretrained(folder)
    processor = transformers.DPTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_saved_network_is_loaded_and_asked(tiny_network):
    network = DepthNetwork(Monocular(model=str(tiny_network)))
    image = np.random.default_rng(0).integers(0, 255, (48, 96, 3)).astype(np.uint8)
    predicted = network.predict(image)
    assert predicted.shape == (48, 96)
    assert np.isfinite(predicted).all()
    np.testing.assert_array_equal(predicted, network.predict(image))
    assert (predicted != network.predict(255 - image)).any()


@pytest.mark.slow
def test_its_depth_is_used_only_where_it_fits_the_road(tiny_network, tmp_path):
    optics = Optics(width=96, height=48, focal_u=85.0, focal_v=85.0, center_u=48.0, center_v=24.0)
    view = View(camera=CAMERA, optics=optics, mount=Mount(height=1.22, pitch=0.0, yaw=0.0))
    maker = DepthMaker(Monocular(model=str(tiny_network)))
    image = np.random.default_rng(0).integers(0, 255, (48, 96, 3)).astype(np.uint8)
    # Weights are random, so it does not: that is found out, and said.
    with pytest.raises(DepthError, match="the network's depth does not fit the road"):
        maker.depths({"wide": view}, image, None)
    with pytest.raises(ValueError, match=r"depth.model=.*nowhere: cannot be loaded"):
        DepthNetwork(Monocular(model=str(tmp_path / "nowhere")))
