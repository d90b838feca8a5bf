"""The shipped world model on held-out drives of the shipped sample.

It is under way, not done: the README has what it reaches. These are what it has to have learnt to
be of any use to go on from, and that its files belong together.
"""

import pytest
import torch

from cluster.evaluate_world_model import EvaluateWorldModelRun, load_scenes
from world_model.evaluation import EvaluationConfig, recovery
from world_model.model_file import SHIPPED, load_pose_net, load_world_model
from world_model.rollouts import roll_out
from world_model.sampler import Sampler, SamplerConfig

EVALUATION = EvaluationConfig(num_scenes=6, commanded=(0.5,))


@pytest.fixture(scope="module")
def loaded():
    return load_world_model(SHIPPED)


@pytest.fixture(scope="module")
def sampler(loaded):
    model, tokenizer = loaded
    return Sampler(model, tokenizer, SamplerConfig(num_steps=4))


@pytest.fixture(scope="module")
def scenes(loaded):
    model, tokenizer = loaded
    return load_scenes(EvaluateWorldModelRun(evaluation=EVALUATION), tokenizer, model.config)


def test_it_is_whole_and_small(loaded):
    assert loaded[0].config.size == "nano"
    load_pose_net(SHIPPED, loaded[0].config)
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) <= 20e6


@pytest.mark.slow
def test_what_comes_next_is_nearer_the_truth_than_what_was_seen_last(sampler, scenes):
    starts = [(scene.drive, scene.first) for scene in scenes]
    made = roll_out(sampler, starts, 5, seed=0, wait=EVALUATION.num_frames + 1)
    seen_last = [torch.from_numpy(drive.latents[0, first - 1]).float() for drive, first in starts]
    error = (made.latents - made.truth).square().mean((0, 2, 3, 4))
    of_standing_still = (torch.stack(seen_last)[:, None] - made.truth).square().mean((0, 2, 3, 4))
    assert (error < 0.7 * of_standing_still).all(), (error, of_standing_still)


@pytest.mark.slow
def test_its_plans_lead_back_to_the_recording_where_they_are_anchored_there(sampler, scenes):
    anchored, alone = (
        recovery(sampler, scenes, EVALUATION, is_anchored=anchors) for anchors in (True, False)
    )
    assert anchored["2_s"] < 0.7
    assert alone["2_s"] > 0.9
