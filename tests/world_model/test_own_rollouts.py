import numpy as np
import pytest
import torch

from tests.world_model.conftest import CONFIG
from world_model.flat_road import motion_between, moved_latents
from world_model.latents import LatentDrive, LatentFile, LatentsInfo, write_latents
from world_model.own_rollouts import OwnRollouts, OwnRolloutsConfig
from world_model.sampler import Sampler, SamplerConfig
from world_model.windows import WindowConfig, WindowSampler

NUM_TARGETS, NUM_FRAMES = 3, 6
NUM_HISTORY = CONFIG.num_history


def drive(name, seed):
    rng = np.random.default_rng(seed)
    latents, moved = (rng.normal(size=(1, 30, *CONFIG.latent_shape)) for _ in range(2))
    poses = np.zeros((1, 30, 3))
    poses[:, :, 0] = np.arange(30)
    return LatentDrive(
        name=name,
        split="train",
        latents=latents.astype(np.float16),
        moved=moved.astype(np.float16),
        poses=poses,
        lateral=np.zeros((1, 30), np.float32),
        plans=np.zeros((1, 30, 33, 15), np.float32),
        valid=np.ones((1, 30, 33), bool),
    )


@pytest.fixture
def make(model, tokenizer, tmp_path):
    info = LatentsInfo(shape=CONFIG.latent_shape, num_variants=1, tokenizer="x", source="a test")
    path = tmp_path / "drives.parquet"
    write_latents(path, info, [drive("a", 1), drive("b", 2)])

    def make(numbers=range(2), **options):
        config = OwnRolloutsConfig(
            **{"num_frames": NUM_FRAMES, "num_scenes": 4, "first_step": 0, "growth": 1} | options
        )
        return OwnRollouts(
            Sampler(model, tokenizer, SamplerConfig(num_steps=2, precision="fp32")),
            WindowSampler(
                LatentFile(path),
                "train",
                WindowConfig(max_wait=4),
                num_frames=NUM_HISTORY + 1 + config.num_frames,
                num_anchors=CONFIG.num_anchors,
            ),
            config,
            seed=0,
            numbers=numbers,
            num_targets=NUM_TARGETS,
        )

    return make


def test_what_is_shown_is_generated_and_what_is_learnt_recorded(make):
    window = make().minibatch(0)
    assert window.frames.shape[:2] == (2, NUM_HISTORY + NUM_TARGETS)
    torch.testing.assert_close(window.shown[:, :NUM_HISTORY], window.frames[:, :NUM_HISTORY])
    difference = (window.shown - window.frames)[:, NUM_HISTORY:].abs().mean((2, 3, 4))
    assert (difference > 0.1).all()


def test_a_target_is_told_what_the_generated_frame_before_it_shows(make, tokenizer):
    window = make().minibatch(0)
    for row in range(NUM_HISTORY + 1, NUM_HISTORY + NUM_TARGETS):
        motion = motion_between(window.poses[:, row - 1], window.poses[:, row])
        moved = moved_latents(tokenizer, window.shown[:, row - 1], motion, "fp32")
        torch.testing.assert_close(window.moved[:, row], moved)


def test_a_rollout_goes_on_from_what_it_has_made(make):
    own = make()
    # Four scenes, two at a time: their first three frames, then their last three.
    first, other, later = (own.minibatch(step) for step in range(3))
    assert not torch.equal(first.frames, other.frames)
    overlap = NUM_HISTORY - NUM_TARGETS
    torch.testing.assert_close(later.shown[:, overlap:NUM_HISTORY], first.shown[:, -NUM_TARGETS:])
    torch.testing.assert_close(later.poses[:, 0], first.poses[:, NUM_TARGETS])
    assert not torch.equal(own.minibatch(4).poses, first.poses)


def test_rollouts_grow(make):
    """At first each window begins as recorded; two windows long they are from step 3 on."""
    own = make(numbers=range(1), num_scenes=1, growth=3)
    for step in (1, 5):
        window = own.minibatch(step)
        is_recorded = torch.equal(window.shown[:, :NUM_HISTORY], window.frames[:, :NUM_HISTORY])
        assert is_recorded == (step == 1)


def test_anchors_are_where_the_window_says(make):
    own = make()
    for step in range(4):
        window = own.minibatch(step)
        away = window.anchor_poses[:, 0, 0] - window.poses[:, -1, 0]
        torch.testing.assert_close(away, window.wait.double())


def test_a_run_that_goes_on_makes_the_same_rollouts(make):
    own, again = make(), make()
    windows = [own.minibatch(step) for step in range(3)]
    for expected, found in zip(windows[2], again.minibatch(2), strict=True):
        torch.testing.assert_close(found, expected)


def test_processes_roll_out_scenes_of_their_own(make):
    whole, part = make(), make(numbers=range(1, 2), num_scenes=2)
    torch.testing.assert_close(part.minibatch(0).frames, whole.minibatch(0).frames[1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, "own_rollouts.share is 1.5, not within 0..1"),
        ({"num_steps": 0}, "own_rollouts.num_steps must be 1 or more, got 0"),
        ({"num_frames": 7}, "num_frames is 7, not a multiple of objective.num_targets"),
    ],
)
def test_what_cannot_be_rolled_out(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
