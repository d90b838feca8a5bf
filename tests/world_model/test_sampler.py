import pytest
import torch

from tests.world_model.conftest import NUM_HISTORY, make_window
from world_model.flat_road import moved_latents
from world_model.flow import euler
from world_model.pose_features import relative_pose
from world_model.sampler import Anchors, Sampler, SamplerConfig
from world_model.windows import joined, tell, window_mask

NUM_STEPS = 6


def start(window, sampler, *, is_anchored):
    anchors = Anchors(window.anchors, window.anchor_poses, window.wait) if is_anchored else None
    return sampler.begin(window.frames[:, :4], window.poses[:, :4], anchors)


def generate(window, sampler, *, is_anchored, poses, noise):
    memory, begun = start(window, sampler, is_anchored=is_anchored)
    made = [sampler.step(memory, poses[:, i], noise[i]) for i in range(poses.shape[1])]
    return begun, made


def without_memory(window, model, tokenizer, config, kept, *, is_anchored, poses, noise):
    """The same frames, each from the whole sequence as it then is, nothing kept."""
    latents, known = window.frames[:, :4], window.poses[:, :4]
    made, plans = [], []
    for i in range(poses.shape[1]):
        num = known.shape[1]
        places = torch.arange(num + 1).expand(len(latents), -1)
        all_poses = torch.cat([known, poses[:, i : i + 1]], dim=1)
        pose = window.anchor_poses[:, 0] if is_anchored else None
        begin = 3 + window.wait
        motion = relative_pose(all_poses[:, -2], all_poses[:, -1])[:, [0, 1, 5]].float()
        new = moved_latents(tokenizer, latents[:, -1], motion, "fp32")
        moved = torch.cat([torch.zeros_like(latents), new[:, None]], dim=1)
        told = tell(moved, all_poses, places, None, pose, begin if is_anchored else None)
        first, num_anchors = latents[:, :0], 0
        if is_anchored:
            num_anchors = 2
            anchor_places = begin[:, None] + torch.arange(2)
            anchors = tell(window.anchors, window.anchor_poses, anchor_places, None, pose, begin)
            told = joined(anchors, told)
            first = window.anchors
        mask = window_mask(num_anchors, num + 1, NUM_HISTORY)
        before = torch.cat([first, latents], dim=1)

        def field(x, tau, told=told, before=before, mask=mask):
            levels = told.tau.clone()
            levels[:, -1] = tau

            def look(told):
                return model(torch.cat([before, x], dim=1), told, mask).velocity[:, -1:]

            velocity = look(told._replace(tau=levels))
            has_motion = told.has_motion.clone()
            has_motion[:, -1] = False
            blind = look(told._replace(tau=levels, has_motion=has_motion))
            return blind + config.guidance * (velocity - blind)

        with torch.inference_mode():
            new = euler(field, noise[i][:, None], config.num_steps)
            whole = torch.cat([before, new], dim=1)
            plans.append(model(whole, told, mask, planning=slice(-1, None)).plan)
        # Of what was kept: a pixel that is rounded the other way is no fault of memory.
        latents, known = torch.cat([latents, kept[i].latent[:, None]], dim=1), all_poses
        made.append(new[:, 0])
    return made, plans


@pytest.mark.parametrize("is_anchored", [True, False])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_with_memory_and_without_are_the_same(model, tokenizer, is_anchored, guidance):
    window = make_window(num_frames=4 + NUM_STEPS)
    config = SamplerConfig(num_steps=3, guidance=guidance, precision="fp32")
    poses, noise = window.poses[:, 4:], torch.randn(NUM_STEPS, *window.frames[:, 0].shape)
    options = {"is_anchored": is_anchored, "poses": poses, "noise": noise}
    _, made = generate(window, Sampler(model, tokenizer, config), **options)
    latents, plans = without_memory(window, model, tokenizer, config, made, **options)
    assert NUM_STEPS > NUM_HISTORY  # so that frames were forgotten
    for one, latent, plan in zip(made, latents, plans, strict=True):
        torch.testing.assert_close(one.latent, latent, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.plan.mean, plan.mean[:, 0], atol=1e-4, rtol=1e-4)


def test_together_and_alone_are_the_same(model, tokenizer):
    window = make_window(batch=3, num_frames=6)
    sampler = Sampler(model, tokenizer, SamplerConfig(num_steps=2, precision="fp32"))
    noise = torch.randn(2, *window.frames[:, 0].shape)
    _, together = generate(
        window, sampler, is_anchored=True, poses=window.poses[:, 4:], noise=noise
    )
    for i in range(3):
        alone_window = type(window)(*(part[i : i + 1] for part in window))
        _, alone = generate(
            alone_window,
            sampler,
            is_anchored=True,
            poses=alone_window.poses[:, 4:],
            noise=noise[:, i : i + 1],
        )
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a.latent[i : i + 1], b.latent, atol=1e-5, rtol=1e-5)


def test_the_pose_is_what_is_asked_for(model, tokenizer):
    window = make_window(num_frames=5)
    sampler = Sampler(model, tokenizer, SamplerConfig(num_steps=2, precision="fp32"))
    noise = torch.randn(window.frames[:, 0].shape)
    pose = window.poses[:, 4]
    first = sampler.step(start(window, sampler, is_anchored=True)[0], pose, noise)
    moved = pose + torch.tensor([0.0, 0.2, 0.0], dtype=torch.float64)
    second = sampler.step(start(window, sampler, is_anchored=True)[0], moved, noise)
    assert (first.latent - second.latent).abs().max() > 1e-3


def test_a_context_that_is_too_short(model, tokenizer, window):
    sampler = Sampler(model, tokenizer, SamplerConfig())
    with pytest.raises(ValueError, match="3 frames is too short: 4 are needed"):
        sampler.begin(window.frames[:, :3], window.poses[:, :3], None)


def test_a_frame_without_temperature_does_not_depend_on_noise(model, tokenizer):
    window = make_window(num_frames=5)

    def frames(temperature):
        config = SamplerConfig(num_steps=3, temperature=temperature, precision="fp32")
        sampler = Sampler(model, tokenizer, config)
        noise = torch.randn(
            2, *window.frames[:, 0].shape, generator=torch.Generator().manual_seed(3)
        )
        made = []
        for own in noise:
            memory, _ = start(window, sampler, is_anchored=True)
            made.append(sampler.step(memory, window.poses[:, 4], own).latent)
        return made

    middle, again = frames(0.0)
    torch.testing.assert_close(middle, again)
    (one, other), (near, _) = frames(1.0), frames(0.1)
    assert not torch.allclose(one, other, atol=0.1)
    assert (near - middle).abs().mean() < (one - middle).abs().mean()


def test_temperature_is_not_negative():
    with pytest.raises(ValueError, match="temperature must not be negative, got -1"):
        SamplerConfig(temperature=-1.0)
