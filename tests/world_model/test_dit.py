from dataclasses import replace

import pytest
import torch

from drive_envs.plan import STEP, best_plan, plan_of_arc, plan_to_pose
from tests.world_model.conftest import CONFIG, without_anchors
from world_model.dit import (
    SIZES,
    WorldModel,
    WorldModelConfig,
    num_parameters,
    velocity_about,
)
from world_model.expectation import Expected
from world_model.windows import joined, tell_window, window_mask

MILLIONS = {"nano": 5.6, "small": 30, "250m": 250, "500m": 500, "1b": 1060}


@pytest.mark.parametrize("size", MILLIONS)
def test_sizes_are_what_they_are_called(size):
    is_mission = size in ("250m", "500m", "1b")
    width, height = (256, 128) if is_mission else (128, 64)
    count = num_parameters(WorldModelConfig(size=size, width=width, height=height))
    assert count == pytest.approx(1e6 * MILLIONS[size], rel=0.05)


def test_every_size_is_larger_than_the_one_before():
    counts = [num_parameters(WorldModelConfig(size=size)) for size in SIZES]
    assert counts == sorted(counts)


def test_a_frame_does_not_see_what_the_mask_hides(model, window):
    anchors, told = tell_window(window)
    told = joined(anchors, told)
    mask = window_mask(2, 7, 3)
    latents = torch.cat([window.anchors, window.frames], dim=1)
    before = model(latents, told, mask)
    changed = latents.clone()
    changed[:, 2 + 3] += 1.0
    after = model(changed, told, mask)
    is_changed = (before.velocity - after.velocity).abs().amax((0, 2, 3, 4)) > 1e-6
    # Frame 3 itself, and those after it, through frames in between also beyond their own reach.
    assert is_changed.tolist() == [False] * 5 + [True] * 4


def test_everything_told_of_a_frame_matters(model, window):
    _, told = tell_window(window)
    told = told._replace(tau=torch.full_like(told.tau, 0.5))  # noised, all of them
    velocity = model(window.frames, told).velocity
    others = {
        "tau": told.tau + 0.3,
        "place": told.place * 2,
        "motion": told.motion + 0.02,
        "moved": told.moved + 0.5,
        "anchor": told.anchor + 0.5,
        "wait": told.wait + 0.4,
        "has_motion": ~told.has_motion,
        "has_anchor": ~told.has_anchor,
    }
    for name, value in others.items():
        other = model(window.frames, told._replace(**{name: value})).velocity
        assert (other - velocity).abs().max() > 1e-3, name


def test_what_is_not_known_does_not_matter(model, window):
    _, told = tell_window(without_anchors(window))
    velocity = model(window.frames, told).velocity
    other = model(window.frames, told._replace(anchor=told.anchor + 3, wait=told.wait + 1)).velocity
    torch.testing.assert_close(other, velocity)


def test_plans_have_the_units_of_the_grid(model, window):
    _, told = tell_window(window)
    plans = model(window.frames, told, planning=slice(2, 6)).plan
    assert plans.mean.shape == (2, 4, 5, 33, 15)
    assert plans.logit.shape == (2, 4, 5)
    assert model(window.frames, told).plan is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"width": 100}, "multiples of 16 pixels, got 100 x 64"),
        ({"num_history": 0}, "num_history must be 1 or more"),
    ],
)
def test_sizes_that_cannot_be(wrong, words):
    with pytest.raises(ValueError, match=words):
        WorldModelConfig(**wrong)


def test_grid():
    assert CONFIG.grid == (1, 2)
    assert WorldModelConfig().num_tokens == 32


def test_plans_depart_from_the_motion_told(model, window):
    """Before it has learnt anything the plan goes on at the speed and yaw rate of the last step."""
    _, told = tell_window(without_anchors(window))
    torch.nn.init.zeros_(model.plan_head.out.weight)
    torch.nn.init.zeros_(model.plan_head.out.bias)
    plan = best_plan(model(window.frames, told, planning=slice(2, 6)).plan)
    rates = told.motion[:, 2:6].float() / STEP
    assert rates[..., 5].abs().min() > 0
    torch.testing.assert_close(plan, plan_of_arc(rates[..., 0], rates[..., 5]))
    blind = told._replace(has_motion=torch.zeros_like(told.has_motion))
    assert best_plan(model(window.frames, blind, planning=slice(2, 6)).plan).abs().max() == 0


def test_plans_depart_from_the_way_to_the_anchors(model, window):
    _, told = tell_window(window)
    torch.nn.init.zeros_(model.plan_head.out.weight)
    torch.nn.init.zeros_(model.plan_head.out.bias)
    plan = best_plan(model(window.frames, told, planning=slice(2, 6)).plan)
    arcs = WorldModel(replace(CONFIG, plans_from="arc"))
    arcs.load_state_dict(model.state_dict())
    asked = told.pick(slice(2, 6))
    rates = asked.motion.float() / STEP
    other = best_plan(arcs(window.frames, told, planning=slice(2, 6)).plan)
    torch.testing.assert_close(other, plan_of_arc(rates[..., 0], rates[..., 5]))
    anchor = asked.anchor[..., [0, 1, 5]].float()
    speed = asked.motion[..., 0].float() / STEP
    torch.testing.assert_close(plan, plan_to_pose(speed, anchor, asked.wait.float(), 2.0))


def test_a_model_that_expects_nothing_is_that_of_the_paper(window):
    model = WorldModel(replace(CONFIG, flat_road=False))
    _, told = tell_window(window)
    seen = model(window.frames, told)
    assert seen.expected is None
    assert seen.velocity.abs().max() == 0  # of a network that has learnt nothing yet
    other = model(window.frames, told._replace(moved=told.moved + 1))
    torch.testing.assert_close(other.velocity, seen.velocity)


def test_velocity_about_what_is_expected_is_that_of_a_gaussian():
    """Drawn from that very Gaussian, what is left of the velocity does not depend on the noise."""
    torch.manual_seed(0)
    num = 20_000
    for deviation in (0.3, 1.0):
        for level in (0.1, 0.5, 0.9):
            tau = torch.full((1, 1), level)
            mean = torch.full((1, 1, num, 1, 1), 0.7)
            image = mean + deviation * torch.randn_like(mean)
            noise = torch.randn_like(mean)
            x = level * noise + (1 - level) * image
            expected = Expected(mean, torch.full_like(mean, deviation))
            rest = image - noise - velocity_about(x, tau, expected)
            assert abs(rest.mean()) < 0.05
            assert abs((rest * (x - x.mean())).mean()) < 0.03, (deviation, level)


def test_nothing_is_expected_of_a_frame_that_is_not_told_its_motion(model, window):
    _, told = tell_window(window)
    told.tau[:, :5] = 0.4  # the last two are finished
    mean, deviation = model.expect(told)
    assert not told.has_motion[:, 0].any()
    assert (mean[:, 0] == 0).all()
    assert (deviation[:, 0] == 1).all()
    assert (mean[:, 1:5] != 0).all()
    assert (mean[:, 5:] == 0).all()
    some = model.expect(told, slice(3, 7))
    torch.testing.assert_close(some.mean[:, 3:], mean[:, 3:])
    assert (some.mean[:, :3] == 0).all()


def test_plans_know_what_is_told_of_a_frame_from_the_start(model, window):
    """Through no gate of a block: these are closed where training begins."""
    _, told = tell_window(window)
    for block in model.blocks:
        torch.nn.init.zeros_(block.modulation.weight)
        torch.nn.init.zeros_(block.modulation.bias)
    plan = model(window.frames, told, planning=slice(2, 6)).plan
    other = model(window.frames, told._replace(anchor=told.anchor + 1), planning=slice(2, 6)).plan
    assert (plan.mean - other.mean).abs().max() > 1e-3
