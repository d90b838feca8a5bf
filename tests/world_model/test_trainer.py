from dataclasses import replace

import numpy as np
import pytest
import torch

from drive_envs.precision import autocast
from tests.world_model.conftest import CONFIG, random_tokenizer
from world_model.autoencoder import AutoencoderConfig
from world_model.dit import SIZES, WorldModel, WorldModelConfig
from world_model.latents import LatentDrive, LatentFile, LatentsInfo, write_latents
from world_model.objective import ObjectiveConfig
from world_model.optimizer import OptimizerConfig
from world_model.own_rollouts import OwnRolloutsConfig
from world_model.sampler import SamplerConfig
from world_model.tokenizer import Tokenizer
from world_model.train import Job, without_impossible_previews
from world_model.trainer import (
    Trainer,
    TrainerConfig,
    expecting_flops,
    forward_flops,
    level_figures,
)
from world_model.windows import WindowConfig

TRAINER = TrainerConfig(
    num_steps=30,
    batch_size=4,
    precision="fp32",
    optimizer=OptimizerConfig(learning_rate=3e-3, num_warmup_steps=2),
    objective=ObjectiveConfig(num_targets=3),
    windows=WindowConfig(max_wait=6),
)


def still_drive(name, split, seed):
    """A drive along a road that looks the same all along: what there is to learn is one picture."""
    rng = np.random.default_rng(seed)
    picture = np.random.default_rng(0).normal(size=CONFIG.latent_shape)
    latents = picture + 0.05 * rng.normal(size=(2, 24, *CONFIG.latent_shape))
    poses = np.zeros((2, 24, 3))
    poses[:, :, 0] = np.arange(24)
    return LatentDrive(
        name=name,
        split=split,
        latents=latents.astype(np.float16),
        moved=np.roll(latents, 1, axis=1).astype(np.float16),
        poses=poses,
        lateral=np.zeros((2, 24), np.float32),
        plans=np.zeros((2, 24, 33, 15), np.float32),
        valid=np.ones((2, 24, 33), bool),
    )


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    path = tmp_path_factory.mktemp("latents") / "still.parquet"
    drives = [still_drive("a", "train", 1), still_drive("b", "train", 2)]
    drives.append(still_drive("c", "held_out", 3))
    info = LatentsInfo(shape=CONFIG.latent_shape, num_variants=2, tokenizer="x", source="a test")
    write_latents(path, info, drives)
    return path


def make_trainer(latents, own_rollouts=None, **options):
    torch.manual_seed(0)
    config = replace(TRAINER, own_rollouts=own_rollouts or OwnRolloutsConfig())
    return Trainer(WorldModel(CONFIG), config, LatentFile(latents), random_tokenizer(), **options)


def test_learns_and_shows_losses_by_level(latents):
    trainer = make_trainer(latents)
    before = trainer.held_out_figures(2)
    figures = [trainer.step() for _ in range(30)]
    after = trainer.held_out_figures(2)
    assert after["held_out/flow"] < 0.8 * before["held_out/flow"]
    assert after["held_out/plan"] < before["held_out/plan"]
    assert trainer.held_out_figures(2) == after
    assert any("loss/flow_at_0.4_0.6" in step for step in figures)
    assert all(0 <= step["speed/loading_share"] <= 1 for step in figures)


def test_a_restored_trainer_goes_on_to_the_bit(latents):
    trainer = make_trainer(latents)
    for _ in range(3):
        trainer.step()
    state = trainer.optimizer.state()
    expected = [trainer.step()["loss/total"] for _ in range(3)]
    again = make_trainer(latents)
    again.optimizer.restore(3, state)
    assert [again.step()["loss/total"] for _ in range(3)] == expected


@pytest.mark.slow
def test_learns_from_history_of_its_own(latents):
    own = OwnRolloutsConfig(share=0.5, num_frames=6, num_scenes=4, num_steps=2, first_step=4)
    trainer = make_trainer(latents, own)
    before = trainer.held_out_figures(2)["held_out/flow"]
    windows = []
    for step in range(28):
        windows.append(trainer.minibatch(step))
        trainer.step()
    assert trainer.held_out_figures(2)["held_out/flow"] < 0.8 * before
    shares = [
        (window.shown != window.frames).flatten(1).any(1).float().mean().item()
        for window in windows
    ]
    assert not any(shares[:4])
    # Minibatches without anchors are as recorded.
    assert set(shares[4:]) == {0.0, 0.5}
    # Steps 4 to 7 are one rollout, and a run that goes on at its end does so to the bit.
    state = trainer.optimizer.state()
    expected = [trainer.step()["loss/total"] for _ in range(2)]
    again = make_trainer(latents, own)
    again.optimizer.restore(28, state)
    assert [again.step()["loss/total"] for _ in range(2)] == expected


def test_drives_too_short_for_rollouts_of_its_own(latents):
    own = OwnRolloutsConfig(share=0.5, num_frames=21)
    with pytest.raises(ValueError, match=r"has 27 frames, .* or lower own_rollouts\.num_frames"):
        make_trainer(latents, own)


def test_drives_too_short_for_previews_are_said_before_training(latents, tmp_path, caplog):
    short = Job(
        model=CONFIG,
        trainer=TRAINER,
        sampler=SamplerConfig(),
        latents=latents,
        tokenizer=tmp_path,
        start=None,
        output=tmp_path,
        run="",
        log_every=1,
        checkpoint_every=1,
        preview_every=5,
        num_threads=1,
        cache_mb=1,
    )
    assert without_impossible_previews(short) == replace(short, preview_every=0)
    assert "longest held-out drive in" in caplog.text
    assert "has 24 frames, of the 31 that one takes" in caplog.text
    unseen = replace(short, preview_every=0)
    caplog.clear()
    assert without_impossible_previews(unseen) == unseen
    assert not caplog.text


def test_processes_share_the_windows_of_a_minibatch(latents):
    trainers = [make_trainer(latents, rank=rank) for rank in range(2)]
    for rank, trainer in enumerate(trainers):
        trainer.numbers = range(rank, 4, 2)
    whole = make_trainer(latents).train.minibatch(0, 0, range(4))
    for rank, trainer in enumerate(trainers):
        own = trainer.train.minibatch(0, 0, trainer.numbers)
        torch.testing.assert_close(own.frames, whole.frames[rank::2])


def test_a_minibatch_that_cannot_be_shared(latents):
    with pytest.raises(ValueError, match="batch_size 4 cannot be shared out to 3 processes"):
        make_trainer(latents, num_processes=3)


def test_flops_are_those_of_the_products(latents):
    """Against torch's own count of a forward pass without plan."""
    from torch.utils.flop_counter import FlopCounterMode

    from tests.world_model.conftest import make_window
    from world_model.windows import tell_window

    window = make_window(batch=1)
    _, told = tell_window(window)
    told = told._replace(tau=torch.full_like(told.tau, 0.5))
    model = WorldModel(CONFIG)
    with FlopCounterMode(display=False) as counter:
        model(window.frames, told)
    dim = SIZES[CONFIG.size][1]
    of_conditions = 2 * 7 * (2 * dim**2 + 2 * 90 * dim + dim * dim * 5)
    assert counter.get_total_flops() == pytest.approx(
        forward_flops(CONFIG, 7) + 7 * expecting_flops(CONFIG) + of_conditions, rel=0.05
    )


def test_levels_without_loss_are_left_out():
    from world_model.objective import Losses

    one = torch.tensor(1.0)
    found = Losses(
        one, one, one, one, torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[0.1, 0.15, torch.nan]])
    )
    figures = level_figures("loss", found)
    assert figures["loss/flow_at_0_0.2"] == 2.0
    assert [name for name in figures if "_at_" in name] == ["loss/flow_at_0_0.2"]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_mission_sizes_take_a_step_and_make_a_frame():
    """500m, both cameras at 128 x 256: one training step and one sampled frame on two cores."""
    from world_model.objective import losses
    from world_model.sampler import Anchors, Sampler, SamplerConfig
    from world_model.windows import Window

    config = WorldModelConfig(size="500m", width=256, height=128, latent_channels=32)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = WorldModel(config)
    num = config.num_history + 1
    shape = config.latent_shape
    poses = torch.zeros(1, num + 5, 3, dtype=torch.float64)
    poses[0, :, 0] = 2.0 * torch.arange(num + 5)
    frames = torch.randn(1, num, *shape)
    window = Window(
        frames=frames,
        shown=frames,
        moved=torch.randn(1, num, *shape),
        poses=poses[:, :num],
        plan=torch.zeros(1, num, 33, 15),
        plan_valid=torch.ones(1, num, 33, dtype=torch.bool),
        anchors=torch.randn(1, 5, *shape),
        anchors_moved=torch.randn(1, 5, *shape),
        anchor_poses=poses[:, num:],
        wait=torch.tensor([1]),
    )
    objective = ObjectiveConfig(layout="paper")
    with autocast("auto", "cpu"):
        found = losses(model, window, objective, config.num_history, torch.Generator())
    found.total.backward()
    gradients = [value.grad for value in model.parameters() if value.grad is not None]
    assert sum(float(gradient.norm()) for gradient in gradients) > 0
    assert found.total.isfinite()
    for value in model.parameters():
        value.grad = None
    del gradients
    tokenizer = Tokenizer(AutoencoderConfig()).requires_grad_(False)
    sampler = Sampler(model, tokenizer, SamplerConfig(num_steps=1))
    anchors = Anchors(window.anchors, window.anchor_poses, window.wait + 1)
    memory, _ = sampler.begin(window.frames, window.poses, anchors)
    made = sampler.step(memory, poses[:, num], torch.randn(1, *shape))
    torch.set_num_threads(threads)
    assert made.latent.shape == (1, *shape)
    assert made.latent.isfinite().all()
