import numpy as np
import pytest
import torch

from drive_envs.path import NUM_PAST
from drive_envs.plan import STEP, TIMES, VELOCITY
from drive_envs.teachers import plans_back
from world_model.autoencoder import AutoencoderConfig
from world_model.encoding import images_as_recorded
from world_model.evaluation import (
    EvaluationConfig,
    Scene,
    beside,
    by_frame,
    frechet,
    make_scene,
    other_drives,
    plan_laterals,
    realised_share,
    recorded_scene,
    recovery,
    still_frames,
    there_and_back,
    true_frames,
)
from world_model.pose_net import PoseNetConfig, Samples, estimate, train_pose_net
from world_model.sampler import Sampler, SamplerConfig
from world_model.tokenizer import Tokenizer

CONFIG = EvaluationConfig(num_frames=10, report_frames=(5,), num_scenes=1)


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    config = AutoencoderConfig(latent_channels=4, channels=(16, 16, 16), num_blocks=1)
    return Tokenizer(config).eval()


def test_excursions_go_out_and_come_back(synthetic):
    path = synthetic.winding_path()
    offset, rate = there_and_back(1.0, 10, 20, len(path))
    np.testing.assert_allclose(offset[:10], 0.0, atol=1e-9)
    assert offset[19] == pytest.approx(1.0)  # the tenth of twenty generated frames
    np.testing.assert_allclose(offset[29:], 0.0, atol=1e-9)
    np.testing.assert_allclose(rate[11:28], (offset[12:29] - offset[10:27]) / 0.4, atol=0.02)
    assert beside(path, -1.0).lateral.eq(-1.0).all()
    drives = other_drives(path, CONFIG, 10)
    peaks = [float(drive.lateral[drive.lateral.abs().argmax()]) for drive in drives]
    assert peaks == pytest.approx([0.5, -0.5, 1.0, -1.0, 1.0, -1.0], abs=1e-6)


def test_a_scene_shows_every_variant_from_where_it_is(synthetic, tokenizer):
    segment = synthetic.segment_from_path(
        synthetic.arc_path(num_rows=40), width=64, height=32, split="held_out"
    )
    scene = recorded_scene(segment, slice(0, 40), tokenizer, CONFIG, (64, 32), 10)
    assert len(scene.images) == 7
    assert scene.drive.latents.shape[:2] == (7, 40)
    assert scene.first == 10
    recorded = images_as_recorded(segment, slice(10, 20), 64, 32)
    torch.testing.assert_close(true_frames([scene], 0, 10)[0], recorded)
    last = images_as_recorded(segment, slice(9, 10), 64, 32)
    torch.testing.assert_close(still_frames([scene], 3)[0], last.repeat(3, 1, 1, 1, 1))
    off = (true_frames([scene], 5, 10)[0].float() - recorded.float()).abs().mean()
    assert off > 2


def test_the_laterals_of_a_teachers_plans_die_out(synthetic, tokenizer):
    """Against plans whose offset from the path is known in closed form."""
    path = synthetic.winding_path(num_rows=130)
    drives = [beside(path, 1.0)]
    images = [torch.zeros(130, 2, 3, 32, 64, dtype=torch.uint8)] * 2
    scene: Scene = make_scene("x", path, drives, images, tokenizer, 40)
    row = torch.tensor([39])
    one = torch.ones(1, dtype=torch.float64)
    assert row >= NUM_PAST
    plan, valid = plans_back(path, row, drives[0].poses[row], one, drives[0].heading[row])
    lateral = plan_laterals([scene], 1, plan.float())[0]
    assert valid.all()
    assert lateral[0] == pytest.approx(1.0, abs=1e-3)
    at = dict(zip(TIMES.tolist(), lateral.tolist(), strict=True))
    late = [value for time, value in at.items() if time > 5]
    assert max(abs(value) for value in late) < 0.08
    assert lateral.diff().max() < 1e-3


@pytest.mark.parametrize("lateral", [-1.5, 1.5])
def test_plans_from_beside_a_curve_begin_at_the_speed_of_the_car_there(synthetic, lateral):
    path = synthetic.arc_path(speed=8.0, curvature=1 / 30)
    drive = beside(path, lateral)
    rows = torch.arange(NUM_PAST, NUM_PAST + 5)
    plan, _ = plans_back(path, rows, drive.poses[rows], drive.lateral[rows], drive.heading[rows])
    ahead = (drive.poses[rows + 1, :2] - drive.poses[rows, :2]).norm(dim=1) / STEP
    torch.testing.assert_close(plan[:, 0, VELOCITY].norm(dim=1), ahead, rtol=0.01, atol=0.0)


def test_recovery_is_the_mean_and_the_distance_of_what_is_left(
    synthetic, tokenizer, model, monkeypatch
):
    """Plans that end 0.1 m left of the path, from either side: nothing is left, 0.1 m off."""
    path = synthetic.winding_path(num_rows=130)
    config = EvaluationConfig(num_frames=20, report_frames=(5,), commanded=(0.5,))
    drives = other_drives(path, config, 40)
    images = [torch.zeros(130, 2, 3, 32, 64, dtype=torch.uint8)] * 5
    scene = make_scene("x", path, drives, images, tokenizer, 40)
    asked = []

    def plans_from(sampler, starts, *, variant, wait):
        asked.append((variant, wait))
        drive, row = drives[variant - 1], torch.tensor([39])
        lateral, heading = drive.lateral[row], drive.heading[row]
        plan, _ = plans_back(path, row, drive.poses[row], lateral, heading, 2.0)
        plan[..., 1] += 0.1
        return plan.float()

    monkeypatch.setattr("world_model.evaluation.plans_from", plans_from)
    sampler = Sampler(model, tokenizer, SamplerConfig())
    found = recovery(sampler, [scene], config, is_anchored=True)
    assert asked == [(3, 21), (4, 21)]
    assert list(found) == [
        *("1_s", "2_s", "4_s", "anchor"),
        *("1_s_distance", "2_s_distance", "4_s_distance", "anchor_distance"),
    ]
    assert found["1_s"] > found["2_s"] > abs(found["4_s"])
    assert found["anchor"] == pytest.approx(0.0, abs=0.02)
    assert found["anchor_distance"] == pytest.approx(0.1, abs=0.02)


def test_realised_share_is_a_slope():
    commanded = torch.tensor([[0.0, 0.5, 1.0], [0.0, -0.5, -1.0]])
    assert realised_share(0.8 * commanded, commanded) == pytest.approx(0.8)
    assert realised_share(0 * commanded, commanded) == 0


def test_frechet_distance_of_two_normals():
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn((4000, 3), generator=generator)
    other = 2.0 * torch.randn((4000, 3), generator=generator) + 1.0
    assert frechet(samples, samples) == 0
    assert frechet(other, samples) == pytest.approx(3 * (1.0 + 1.0), rel=0.1)


def test_curves_are_means_over_scenes_and_cameras():
    frames = torch.zeros(2, 3, 2, 3, 4, 4, dtype=torch.uint8)
    frames[:, 1] = 10
    curve = by_frame(lambda a, b: (a.float() - b).mean((1, 2, 3)), frames, 0 * frames)
    np.testing.assert_allclose(curve, [0, 10, 0])


@pytest.mark.slow
def test_a_pose_net_sees_how_far_off_a_picture_was_taken(synthetic):
    """On the textured plane, along roads and offsets that it has not seen."""
    rng = np.random.default_rng(0)

    def samples(num):
        from drive_envs.camera import cameras

        views = cameras(64, 32)
        recorded, seen, offsets = [], [], []
        for _ in range(num):
            x, y = rng.uniform(-50, 50, 2)
            lateral, turn = rng.uniform(-1.5, 1.5), rng.uniform(-0.1, 0.1)
            here, there = (x, y, 0.0), (x, y + lateral, turn)
            for images, pose in ((recorded, here), (seen, there)):
                images.append(np.stack([synthetic.view(view, pose)[0] for view in views.values()]))
            offsets.append((lateral, turn))
        parts = (np.stack(recorded), np.stack(seen), np.array(offsets, np.float32))
        return Samples(*(torch.from_numpy(part) for part in parts))

    network = train_pose_net(samples(1000), PoseNetConfig(num_steps=400), seed=0)
    held_out = samples(60)
    error = (estimate(network, held_out.recorded, held_out.seen) - held_out.offset).abs().mean(0)
    guess = held_out.offset.abs().mean(0)
    assert (error < 0.2 * guess).all(), error
