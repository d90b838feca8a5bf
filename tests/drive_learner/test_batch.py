from dataclasses import replace

import numpy as np
import pytest
import torch

from drive_actors.bottleneck import noise
from drive_actors.policy import Policy
from drive_envs.protocol import NUM_CONTEXT
from drive_learner.batch import STEP_FIELDS, collate, empty_batch, fill, fragments, source_of

FEATURES = 16


@pytest.mark.parametrize("length", [1, 4, 5, 12, 30])
def test_fragments_cover_every_active_step_and_no_other(random_rollout, length):
    rollout = random_rollout()
    covered = np.zeros_like(rollout.active)
    for _, scene, start, _ in fragments(source_of(rollout, FEATURES), length):
        assert start >= 0
        covered[start : start + length, scene] = True
    num_active = rollout.active.sum(0)
    assert (covered >= rollout.active).all()
    # only a scene shorter than a fragment reaches past its end
    assert (covered.sum(0) == np.clip(np.maximum(num_active, length), 0, len(covered))).all()


def test_a_column_is_the_rollout_at_that_place(random_rollout):
    source = source_of(random_rollout(), FEATURES)
    picked = list(fragments(source, 4))
    batch = collate(picked, 4)
    for column, (_, scene, start, _) in enumerate(picked):
        num = min(4, source.rollout.num_steps - start)
        for name in STEP_FIELDS:
            expected = getattr(source.rollout, name)[start : start + num, scene]
            np.testing.assert_array_equal(getattr(batch, name)[:num, column], expected)
        for key, value in source.rollout.observation.items():
            expected = value[start : start + NUM_CONTEXT + num + 1, scene]
            found = batch.observation[key][: NUM_CONTEXT + num + 1, column]
            np.testing.assert_array_equal(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("context", [10, 14, 40])
def test_a_fragment_remembers_as_far_back_as_the_actor_did(random_rollout, tiny_policy, context):
    policy = Policy(replace(tiny_policy.config, context=context))
    source = source_of(random_rollout(seed=5), FEATURES)
    rollout = source.rollout
    whole = policy.unroll(
        {key: torch.from_numpy(value) for key, value in rollout.observation.items()},
        torch.from_numpy(source.noise),
    )
    picked = list(fragments(source, 4))
    batch = collate(picked, 4, num_context=policy.config.num_past)
    assert (batch.present is None) == (context == 10)
    learnt = policy.unroll(
        batch.observation, batch.noise, batch.present, num_context=batch.num_context
    )
    for column, (_, scene, start, _) in enumerate(picked):
        num = min(4, rollout.num_steps - start)
        torch.testing.assert_close(
            learnt.action_mean[:num, column],
            whole.action_mean[start : start + num, scene],
            rtol=1e-4,
            atol=1e-5,
        )


def test_noise_is_the_actors(random_rollout):
    rollout = random_rollout(seed=5)
    source = source_of(rollout, FEATURES)
    picked = next(f for f in fragments(source, 4) if f.start > 0)
    batch = collate([picked], 4)
    whole = noise(5, NUM_CONTEXT + rollout.num_steps + 1, rollout.num_scenes, FEATURES)
    expected = whole[picked.start : picked.start + NUM_CONTEXT + 5, picked.scene]
    assert batch.noise is not None
    torch.testing.assert_close(batch.noise[:, 0], expected)
    assert collate([next(fragments(source_of(rollout, None), 4))], 4).noise is None


@pytest.mark.parametrize("num_context", [NUM_CONTEXT, 20])
def test_reused_memory_equals_fresh_memory(random_rollout, num_context):
    """Short fragments after long ones: nothing of the earlier minibatch may show."""
    first = source_of(random_rollout(num_steps=12, lengths=(12, 12), seed=1), FEATURES)
    second = source_of(random_rollout(num_steps=3, lengths=(3, 2), seed=2), FEATURES)
    batch = empty_batch(first, 5, 2, num_context=num_context)
    fill(batch, list(fragments(first, 5))[1:3])
    fill(batch, list(fragments(second, 5)))
    fresh = collate(list(fragments(second, 5)), 5, num_context=num_context)
    for name in STEP_FIELDS:
        assert torch.equal(getattr(batch, name), getattr(fresh, name)), name
    for key, value in fresh.observation.items():
        assert torch.equal(batch.observation[key], value), key
    assert batch.active.sum(0).tolist() == [3, 2]
    assert (batch.present is None) == (fresh.present is None) == (num_context == NUM_CONTEXT)
    if batch.present is not None and fresh.present is not None:
        assert torch.equal(batch.present, fresh.present)
