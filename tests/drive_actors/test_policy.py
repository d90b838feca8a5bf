from dataclasses import replace

import pytest
import torch

from drive_actors.bottleneck import noise
from drive_actors.fastvit import FastVit
from drive_actors.policy import Policy, PolicyConfig
from drive_envs.plan import NUM_POINTS, SCALE, Hypotheses, best_plan, negative_log_likelihood
from drive_envs.protocol import NUM_CONTEXT

CONFIG = PolicyConfig(width=64, height=32, channels=(8, 16, 16), num_features=64, model_dim=32)
TIME, BATCH = 4, 3
NUM_FRAMES = NUM_CONTEXT + TIME


def observation(config=CONFIG, num_frames=NUM_FRAMES, batch=BATCH):
    blocks = torch.randint(
        0, 256, (2, num_frames, batch, 3, config.height // 8, config.width // 8), dtype=torch.uint8
    )
    narrow, wide = blocks.repeat_interleave(8, -1).repeat_interleave(8, -2)
    return {
        "narrow": narrow,
        "wide": wide,
        "speed": 5 + 20 * torch.rand(num_frames, batch, 1),
        "desire": torch.eye(3)[torch.randint(0, 3, (num_frames, batch))],
        "last_action": 0.02 * torch.randn(num_frames, batch, 2),
    }


def policy(config=CONFIG):
    torch.manual_seed(0)
    return Policy(config)


def act_step_by_step(driver, frames, unit_noise):
    """Keep the last tokens, as an actor does; before the drive there are none."""
    num_past = driver.config.num_past
    tokens = [torch.zeros(BATCH, driver.config.model_dim)] * num_past + [
        driver.tokens({key: value[t] for key, value in frames.items()}, unit_noise[t])
        for t in range(NUM_FRAMES)
    ]
    return [
        driver(torch.stack(tokens[t : t + num_past + 1], dim=1), frames["speed"][t])
        for t in range(NUM_CONTEXT, NUM_FRAMES)
    ]


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [{}, {"context": 1}, {"context": 12}, {"num_layers": 1}, {"encoder": FastVit(stride=8)}],
)
def test_unroll_is_acting_step_by_step(changes):
    config = replace(CONFIG, **changes)
    driver, frames = policy(config), observation()
    unit_noise = noise(5, NUM_FRAMES, BATCH, config.num_features)
    unrolled = driver.train().unroll(frames, unit_noise)
    for t, step in enumerate(act_step_by_step(driver.eval(), frames, unit_noise)):
        for name in ("action_mean", "action_log_std", "value"):
            torch.testing.assert_close(
                getattr(unrolled, name)[t], getattr(step, name), atol=1e-5, rtol=0
            )
        for together, alone in zip(unrolled.plan, step.plan, strict=True):
            torch.testing.assert_close(together[t], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_frames_that_are_not_needed_change_nothing_that_is():
    driver, frames = policy(), observation()
    unit_noise = noise(5, NUM_FRAMES, BATCH, CONFIG.num_features)
    needed = torch.ones(NUM_FRAMES, BATCH, dtype=torch.bool)
    needed[-2:, 1] = False
    whole = driver.unroll(frames, unit_noise)
    part = driver.unroll(frames, unit_noise, needed)
    meant = needed[NUM_CONTEXT:]
    torch.testing.assert_close(part.value[meant], whole.value[meant], atol=1e-5, rtol=0)
    assert part.value.isfinite().all()


@torch.no_grad()
def test_nothing_is_read_from_beyond_the_context_or_the_hidden_action():
    frames = observation(num_frames=10)
    earlier = {key: torch.cat([value[1:2], value[1:]]) for key, value in frames.items()}
    for context, same in ((10, False), (9, True)):
        driver = policy(replace(CONFIG, context=context))
        values = [driver.unroll(given, None).value for given in (frames, earlier)]
        assert torch.equal(*values) == same
    moved = frames | {"last_action": frames["last_action"] + 0.1}
    for use, same in ((True, False), (False, True)):
        driver = policy(replace(CONFIG, use_last_action=use))
        values = [driver.unroll(given, None).value for given in (frames, moved)]
        assert torch.equal(*values) == same


@torch.no_grad()
def test_acting_without_a_plan_is_the_same():
    driver = policy()
    history = torch.randn(BATCH, 10, CONFIG.model_dim)
    output = driver(history, torch.rand(BATCH, 1))
    for alone, together in zip(driver.act(history), output[1:3], strict=True):
        torch.testing.assert_close(alone, together)


@torch.no_grad()
def test_features_have_unit_power_and_the_noise_its_capacity():
    driver, frames = policy(), observation(num_frames=1)
    one = {key: value[0] for key, value in frames.items()}
    power = driver.features(one).square().mean(-1)
    torch.testing.assert_close(power, torch.ones(BATCH))
    assert driver.noise_std == pytest.approx((2 ** (1400 / 64) - 1) ** -0.5)
    assert policy(replace(CONFIG, bottleneck_bits=None)).noise_std == 0


@pytest.mark.slow
def test_overfits_one_batch():
    driver = policy(replace(CONFIG, bottleneck_bits=None, num_hypotheses=2))
    frames = observation(num_frames=10)
    target = SCALE * torch.rand(BATCH, 1, 15).mul(4).sub(2)
    valid = torch.ones(BATCH, NUM_POINTS, dtype=torch.bool)
    optimizer = torch.optim.AdamW(driver.parameters(), lr=2e-3)
    for _ in range(150):
        plan = driver.unroll(frames, None).plan
        plan = Hypotheses(*(value[0] for value in plan))
        loss = negative_log_likelihood(plan, target, valid).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    error = (best_plan(driver.unroll(frames, None).plan)[0] - target) / SCALE
    assert error.abs().mean() < 0.25  # from 1.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("width", 100),
        ("height", 0),
        ("context", 101),
        ("model_dim", 30),
        ("bottleneck_bits", 0.0),
        ("channels", (4, 8, 9)),
        ("num_layers", 0),
    ],
)
def test_impossible_sizes_are_refused_by_name(key, value):
    with pytest.raises(ValueError, match=key):
        replace(CONFIG, **{key: value})
