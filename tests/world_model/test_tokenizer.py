import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from drive_envs.image_metrics import import_torchvision
from drive_envs.network_file import NetworkFileError
from world_model.autoencoder import Autoencoder, AutoencoderConfig
from world_model.optimizer import Optimizer, OptimizerConfig
from world_model.pretrained import PretrainedConfig
from world_model.tokenizer import Tokenizer, load_tokenizer, save_tokenizer, to_float
from world_model.tokenizer_training import (
    FrameSet,
    TokenizerLossConfig,
    frames_of_segment,
    spread_rows,
    tokenizer_losses,
)

TINY = AutoencoderConfig(latent_channels=4, channels=(16, 16, 16), num_blocks=1)


def images(num=3, height=16, width=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand((num, 2 * 3, 2, 4), generator=generator)
    smooth = torch.nn.functional.interpolate(small, (height, width), mode="bilinear")
    return (255 * smooth).to(torch.uint8).unflatten(1, (2, 3))


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return Tokenizer(TINY).eval()


@pytest.fixture(scope="module", params=["AutoencoderKL", "AutoencoderTiny"])
def pretrained_folder(request, tmp_path_factory):
    """What `save_pretrained` leaves of a tiny network of each kind."""
    import_torchvision()
    diffusers = importlib.import_module("diffusers")
    torch.manual_seed(0)
    if request.param == "AutoencoderKL":
        network = diffusers.AutoencoderKL(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=2,
            latent_channels=4,
        )
    else:
        network = diffusers.AutoencoderTiny(
            encoder_block_out_channels=(4, 4, 4, 4),
            decoder_block_out_channels=(4, 4, 4, 4),
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
        )
    folder = tmp_path_factory.mktemp(request.param)
    network.save_pretrained(folder)
    return folder


def test_latents_are_eight_times_smaller(tokenizer):
    latents = tokenizer.encode(images())
    assert latents.shape == (3, 4, 2, 4)
    assert tokenizer.decode(latents).shape == (3, 2, 3, 16, 32)


def test_standardised_latents_have_mean_zero_and_deviation_one(tokenizer):
    frames = images(64)
    tokenizer.standardise(frames.split(16))
    latents = tokenizer.encode(frames)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-2, rtol=0)


def test_what_shows_more_weighs_more(tokenizer):
    """By the root of what it moves in pixels; what is seen stays as it was."""
    torch.manual_seed(0)
    patterns = torch.tensor([40.0, 20, 10, 5])[:, None, None, None] * torch.randn(4, 6, 8, 8).sign()
    patches = torch.einsum("frck,kdpq->fdrpcq", torch.randn(64, 2, 4, 4), patterns)
    frames = (127 + patches.reshape(64, 2, 3, 16, 32)).clamp(0, 255).to(torch.uint8)
    assert isinstance(tokenizer.coder, Autoencoder)
    tokenizer.coder.start_linear(to_float(frames))
    tokenizer.standardise([frames])
    before, shown = tokenizer.visibility(frames), tokenizer.decode(tokenizer.encode(frames))
    assert before.max() > 4 * before.min()
    tokenizer.weigh(frames)
    deviation = tokenizer.encode(frames).std((0, 2, 3))
    torch.testing.assert_close(deviation, (before / before.mean()).sqrt(), atol=0.01, rtol=0.01)
    torch.testing.assert_close(
        tokenizer.visibility(frames), before / deviation, atol=0.05, rtol=0.05
    )
    assert (tokenizer.decode(tokenizer.encode(frames)).int() - shown.int()).abs().max() <= 1


def test_statistics_do_not_change_what_is_seen(tokenizer):
    frames = images()
    before = tokenizer.decode(tokenizer.encode(frames))
    tokenizer.standardise([frames])
    after = tokenizer.decode(tokenizer.encode(frames))
    assert (before.int() - after.int()).abs().max() <= 1


def test_a_tokenizer_comes_back_from_its_folder(tokenizer, tmp_path):
    tokenizer.standardise([images()])
    save_tokenizer(tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    torch.testing.assert_close(
        loaded.encode(images()), tokenizer.encode(images()), atol=2e-2, rtol=2e-2
    )
    save_tokenizer(loaded, tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").digest == loaded.digest
    assert loaded.digest != tokenizer.digest  # its weights are rounded


def test_pretrained_autoencoders_take_the_cameras_one_by_one(pretrained_folder, tmp_path):
    tokenizer = Tokenizer(PretrainedConfig(name=str(pretrained_folder))).eval()
    frames = images()
    assert tokenizer.latent_channels == 8
    latents = tokenizer.encode(frames)
    assert latents.shape == (3, 8, 2, 4)
    swapped = tokenizer.encode(frames.flip(1))
    torch.testing.assert_close(latents[:, :4], swapped[:, 4:])
    assert tokenizer.decode(latents).shape == frames.shape
    tokenizer.standardise([frames])
    save_tokenizer(tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    torch.testing.assert_close(loaded.encode(frames), tokenizer.encode(frames))
    assert (tmp_path / "tokenizer.safetensors").stat().st_size < 1000  # statistics alone
    assert loaded.digest == tokenizer.digest


def test_a_pretrained_autoencoder_that_is_not_there():
    with pytest.raises(ValueError, match=r"'/no/such/folder' cannot be loaded .*name a folder"):
        Tokenizer(PretrainedConfig(name="/no/such/folder"))


def test_a_folder_of_another_model(tmp_path):
    import_torchvision()
    diffusers = importlib.import_module("diffusers")
    diffusers.VQModel(block_out_channels=(4,), norm_num_groups=2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a VQModel; use AutoencoderKL or"):
        Tokenizer(PretrainedConfig(name=str(tmp_path)))


def test_damaged_folders_are_refused(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    content = (tmp_path / "tokenizer.safetensors").read_bytes()

    (tmp_path / "tokenizer.safetensors").write_bytes(content[:-1] + b"x")
    with pytest.raises(NetworkFileError, match="is damaged"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.safetensors").write_bytes(content)

    other = state | {"tokenizer": state["tokenizer"] | {"latent_channels": 8}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(NetworkFileError, match="of another network than tokenizer"):
        load_tokenizer(tmp_path)

    (tmp_path / "tokenizer.json").write_text(json.dumps(state | {"tokenizer": {"kind": "best"}}))
    with pytest.raises(NetworkFileError, match="kind is 'best'; it must be own or pretrained"):
        load_tokenizer(tmp_path)

    with pytest.raises(NetworkFileError, match="cannot be read"):
        load_tokenizer(tmp_path / "nowhere")


def test_learns_to_show_what_it_saw():
    torch.manual_seed(0)
    autoencoder = Autoencoder(replace(TINY, latent_channels=8))
    optimizer = Optimizer(autoencoder, OptimizerConfig(learning_rate=5e-3, num_warmup_steps=5), 120)
    frames = images(4)
    errors = []
    for step in range(120):
        generator = torch.Generator().manual_seed(step)
        found = tokenizer_losses(autoencoder, frames, TokenizerLossConfig(), None, generator)
        optimizer.descend(found.total)
        errors.append(found.l1.item())
        assert found.lpips.isnan()
    assert errors[-1] < 0.35 * errors[0]


def test_minibatches_depend_on_the_step_alone_and_half_is_mirrored():
    frames = torch.arange(32, dtype=torch.uint8).expand(50, 2, 3, 16, 32).contiguous()
    first, again = FrameSet(frames, 1), FrameSet(frames, 1)
    torch.testing.assert_close(first.minibatch(3, 200), again.minibatch(3, 200))
    is_mirrored = first.minibatch(3, 200)[:, 0, 0, 0, 0] == 31
    assert 70 < is_mirrored.sum() < 130
    assert (frames[:, 0, 0, 0, 0] == 0).all()  # what is kept was not turned over


def test_rows_are_spread_over_a_segment(synthetic_segment):
    rows = spread_rows(100, 10, np.random.default_rng(0))
    assert [row // 10 for row in rows] == list(range(10))
    assert spread_rows(3, 10, np.random.default_rng(0)) == [0, 1, 2]
    frames = frames_of_segment(synthetic_segment, 4, 128, 64, seed=0)
    assert frames.shape == (4, 2, 3, 64, 128)


def test_begins_with_the_principal_components_of_what_it_sees():
    """Patches that are mixtures of three patterns come out whole through four channels."""
    torch.manual_seed(0)
    patterns, shares = torch.randn(3, 6, 8, 8) * 0.1, torch.randn(40, 2, 4, 3)
    patches = torch.einsum("frck,kdpq->fdrpcq", shares, patterns).reshape(40, 6, 16, 32)
    frames = (patches + 0.2).unflatten(1, (2, 3))
    autoencoder = Autoencoder(TINY)
    autoencoder.start_linear(frames)
    with torch.no_grad():
        mean, log_variance = autoencoder.moments(frames)
        shown = autoencoder.decode(mean)
    torch.testing.assert_close(shown, frames, atol=2e-3, rtol=0)
    assert mean[:, :3].std((0, 2, 3)) == pytest.approx([1.0] * 3, abs=0.1)
    assert (log_variance == log_variance[0, 0, 0, 0]).all()
