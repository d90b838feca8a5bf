import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from drive_actors.fastvit import FastVit, FastVitEncoder
from drive_actors.policy import Policy, PolicyConfig, fresh_policy

CONFIG = FastVit(num_channels=4)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return FastVitEncoder(CONFIG, 64, 32)


def images(num, height=32, width=64):
    blocks = torch.randint(0, 256, (num, 3, height // 8, width // 8), dtype=torch.uint8)
    return blocks.repeat_interleave(8, -1).repeat_interleave(8, -2)


@torch.no_grad()
def test_a_learners_batch_is_each_of_an_actors_images_alone(net):
    batch = images(16)
    alone = torch.cat([net.eval()(image[None]) for image in batch])
    torch.testing.assert_close(net.train()(batch), alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_training_changes_nothing_but_weights(net):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()(images(16))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module.training for module in net.modules())


def test_the_gradient_reaches_every_weight(net):
    net.zero_grad()
    net(images(2)).square().mean().backward()
    without = [name for name, value in net.named_parameters() if value.grad is None]
    still = [name for name, value in net.named_parameters() if not value.grad.any()]
    assert (without, still) == ([], [])


@torch.no_grad()
def test_noise_has_unit_power_in_the_last_grid_and_tells_images_apart(net):
    said = net.grid(images(64), torch.float32)
    assert 0.5 < said.square().mean() < 2
    assert said.mean(0).square().mean() < 0.6 * said.square().mean()


@torch.no_grad()
def test_where_something_is_changes_what_is_said(net):
    left = torch.full((1, 3, 32, 64), 100, dtype=torch.uint8)
    right = left.clone()
    left[..., 8:14] = 255
    right[..., 40:46] = 255
    here, there = net(left), net(right)
    assert (here - there).norm() > 0.1 * here.norm()


@torch.no_grad()
@pytest.mark.parametrize(
    ("width", "height", "top", "stride", "rows", "columns"),
    [(128, 64, 32, 16, 2, 8), (128, 64, 8, 16, 4, 8), (256, 128, 64, 32, 2, 8)],
)
def test_rows_above_the_top_are_not_read(width, height, top, stride, rows, columns):
    net = FastVitEncoder(replace(CONFIG, stride=stride), width, height, top=top)
    batch = images(2, height, width)
    above, below = batch.clone(), batch.clone()
    above[:, :, :top] = 0
    below[:, :, top] = 0
    assert net(above).equal(net(batch))
    assert not net(below).equal(net(batch))
    assert net(batch).shape == (2, net.num_outputs) == (2, 4 * rows * columns)


def test_pixels_enter_in_the_units_of_the_weights(net):
    seen = []
    handle = net.backbone.stem.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    net(torch.full((1, 3, 32, 64), 255, dtype=torch.uint8))
    handle.remove()
    white = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    torch.testing.assert_close(seen[0][0, :, 5, 5], torch.tensor(white), atol=1e-5, rtol=0)


def test_images_that_do_not_fit_are_refused(net):
    with pytest.raises(ValueError, match="64 x 32"):
        net(images(2, 32, 32))
    with pytest.raises(ValueError, match=r"4 x 1 cells of the 128 x 32 pixels .* smaller encoder"):
        PolicyConfig(encoder=FastVit(stride=32))
    PolicyConfig(encoder=FastVit(stride=32), width=256, height=128)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"model": "resnet18"}, "resnet18"), ({"num_channels": 0}, "0")],
)
def test_settings_out_of_range_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        FastVit(**changes)


def test_a_model_that_timm_does_not_have_is_refused_with_those_that_it_has():
    with pytest.raises(ValueError, match=r"fastvit_t9.*fastvit_t8"):
        FastVitEncoder(FastVit(model="fastvit_t9"), 64, 32)


def whole_network():
    """What timm's own file holds: stages and a head that are not used here, too."""
    import timm  # the encoder has imported torchvision, which timm needs

    torch.manual_seed(5)
    return timm.create_model("fastvit_t8", num_classes=10)


def test_weights_of_timm_are_taken_by_both_cameras_and_not_looked_for_again(net, tmp_path):
    path = tmp_path / "model.safetensors"
    theirs = whole_network().state_dict()
    save_file(theirs, path)
    config = PolicyConfig(encoder=FastVit(weights=str(path)))
    for encoder in fresh_policy(config).encoders.values():
        assert isinstance(encoder, FastVitEncoder)
        ours = encoder.backbone.state_dict()
        assert len(ours) > 100
        assert all(torch.equal(ours[name], theirs[name]) for name in ours if "num_" not in name)
    path.unlink()
    Policy(config)


def test_weights_that_cannot_be_had_are_named(net, tmp_path):
    path = tmp_path / "model.safetensors"
    encoder = FastVitEncoder(replace(CONFIG, weights=str(path)), 64, 32)
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read .* fastvit_t8"):
        encoder.read_weights()
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        encoder.read_weights()
    save_file({"stem.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="of another network"):
        encoder.read_weights()


@pytest.mark.slow
def test_timm_is_imported_only_where_it_is_needed():
    code = (
        "import sys; from drive_actors.policy import Policy, PolicyConfig; Policy(PolicyConfig()); "
        "sys.exit('timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
