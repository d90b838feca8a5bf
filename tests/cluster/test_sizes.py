"""The arithmetic of sizes: counted against the real thing, and the page against the arithmetic."""

import functools
import math
from typing import Any

import pytest
import torch
import yaml
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import (
    _default_utilization_scorer,
    get_nodes_for,
)
from torch.utils.flop_counter import FlopCounterMode

from cluster.bench_learner import minibatch, random_rollout
from cluster.config import load
from cluster.counting import (
    bytes_of,
    call_gflop,
    decoding_gflop,
    expecting_gflop,
    frame_gflop,
    learnt_gflop,
    weights_bytes,
)
from cluster.sizes import ASSUMED, PLACES, balance
from cluster.sizes_page import page
from cluster.train_policy import TrainPolicyRun
from drive_actors.policy import Policy
from drive_learner.batch import STEP_FIELDS, empty_batch, fill
from drive_learner.learner import Learner
from tests.cluster.test_specs import CLOUDS, SPECS
from tests.cluster.test_specs import load as load_spec
from world_model.autoencoder import AutoencoderConfig
from world_model.dit import WorldModel, WorldModelConfig
from world_model.sampler import Memory, Sampler, SamplerConfig
from world_model.tokenizer import Tokenizer

NOTHING = NodeAvailabilitySummary(node_availabilities={})  # known of what can be had
BY_RUN = {place.run: place for place in PLACES}


@pytest.fixture
def small(tiny):
    return load(TrainPolicyRun, overrides=tiny)


def test_bytes_are_those_of_the_real_rollout_and_minibatch(small):
    rollout = random_rollout(small, 0)
    of_rollout, of_batch = bytes_of(small)
    num_steps = rollout.num_steps * rollout.num_scenes
    assert of_rollout * num_steps == pytest.approx(rollout.num_bytes)
    picked = minibatch(small)
    batch = empty_batch(picked[0].source, small.queue.sequence_length, len(picked))
    assert batch.noise is not None
    parts = [*batch.observation.values(), batch.noise, batch.policy_version, batch.recording]
    parts += [getattr(batch, name) for name in STEP_FIELDS]
    assert of_batch * batch.reward.numel() == pytest.approx(sum(part.nbytes for part in parts))


def test_weights_are_those_that_are_published(small):
    published = Learner(Policy(small.policy), small.learner_config).weights()
    assert weights_bytes(small.policy) == sum(value.nbytes for value in published.values())


def test_products_of_learning_are_those_of_a_gradient_step(small):
    learner = Learner(Policy(small.policy), small.learner_config)
    picked = minibatch(small)
    batch = empty_batch(picked[0].source, small.queue.sequence_length, len(picked))
    fill(batch, picked)
    with FlopCounterMode(display=False) as counter:
        learner.update(batch)
    counted = batch.reward.numel() * learnt_gflop(small.policy, small.queue.sequence_length)
    assert counted == pytest.approx(counter.get_total_flops() / 1e9, rel=0.05)


def test_products_of_a_frame_are_those_of_the_sampler():
    config = WorldModelConfig(size="femto", width=32, height=16)
    tokenizer = Tokenizer(AutoencoderConfig(latent_channels=config.latent_channels))
    model = WorldModel(config).requires_grad_(False)
    sampler = Sampler(model, tokenizer, SamplerConfig(num_steps=3, precision="fp32"))
    memory = Memory.empty(config, 2, is_anchored=True)
    pose, noise = torch.zeros(2, 3, dtype=torch.float64), torch.randn(2, *config.latent_shape)
    with FlopCounterMode(display=False) as counter:
        sampler.step(memory, pose, noise)
    run = load(
        TrainPolicyRun,
        overrides=[
            "policy={width: 32, height: 16}",
            "env={width: 32, height: 16}",
            "world={width: 32, height: 16}",
            "service.sampler.num_steps=3",
        ],
    )
    # Less by the plan head's attention, which PyTorch's counter overlooks where it is fused.
    counted = counter.get_total_flops() / 1e9
    assert 2 * frame_gflop("femto", run) == pytest.approx(counted, rel=0.005)
    of_calls = 3 * call_gflop("femto", 32, 16, False) + call_gflop("femto", 32, 16, True)
    of_frame = expecting_gflop("femto", 32, 16) + decoding_gflop(32, 16)
    assert frame_gflop("femto", run) == pytest.approx(of_calls + of_frame, rel=1e-9)


def test_the_laptop_is_worked_out_as_by_hand():
    one = balance(BY_RUN["laptop"])
    # 5.8 gradient steps/s of 300 steps, each learnt from twice; four actors would drive more.
    assert one.limits["learner"] == pytest.approx(5.8 * 300 / 2)
    assert one.limits["actors"] == pytest.approx(4 * 233.5)
    assert (one.full, one.share("learner")) == ("learner", 1.0)
    assert one.gradient_rate == pytest.approx(5.8)
    # 40 frames of 16 scenes, of two images of 128 x 64 and 24 bytes; 2,056 bytes a step besides.
    images = 40 * 16 * (2 * 3 * 128 * 64 + 24)
    assert one.rollout_mb == pytest.approx((images + 480 * (33 * 61 + 43) + 16 * 8) / 1e6)


def test_what_two_share_is_used_once():
    one = balance(BY_RUN["one_gpu"])
    assert sum(one.gpu_shares.values()) <= 1 + 1e-9
    apart = one.limits["world model"], one.limits["learner"]
    assert one.limits["shared GPU"] < min(apart)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.run)
def test_a_place_has_room_for_what_its_run_asks_for(place):
    config = place.config
    asked = config.actors.max_actors * config.actors.num_cpus
    if not place.nodes:
        replicas = config.service.num_replicas * config.service.num_cpus if place.model else 0
        assert asked + replicas + config.num_threads <= place.cores
    driven = config.actors.max_actors * config.actors.seats * config.num_scenes
    if place.model:
        # Sessions are spread by chance: there is room for more than the mean.
        room = config.service.num_replicas * config.service.engine.capacity
        assert 1.2 * driven <= room
    assert config.queue.capacity >= config.actors.max_actors * config.actors.seats


@pytest.mark.parametrize("name", CLOUDS)
def test_the_autoscaler_brings_the_nodes_that_the_page_says(name):
    place = BY_RUN["nodes_64"]
    config, wanted = place.config, dict(place.nodes)
    spec = load_spec(name)
    types = spec["available_node_types"]
    for kind, count in wanted.items():
        types[kind]["max_workers"] = count
    del types["actors_spot"]
    actor = {"CPU": config.actors.num_cpus, **config.actors.resources}
    service = config.service
    replica = {"CPU": service.num_cpus, "GPU": service.num_gpus, **service.resources}
    demands: Any = [actor] * config.actors.max_actors + [replica] * service.num_replicas
    scorer: Any = functools.partial(_default_utilization_scorer, node_availability_summary=NOTHING)
    nodes, unmet = get_nodes_for(
        types,
        {"learner": 1},
        spec["head_node_type"],
        sum(wanted.values()) - 1,
        demands,
        scorer,
    )
    assert unmet == []
    assert {"learner": 1, **nodes} == wanted


def test_the_page_says_what_the_arithmetic_does():
    assert (SPECS / "SIZES.md").read_text() == page()


def test_assumptions_are_said_to_be_such():
    text = (SPECS / "SIZES.md").read_text()
    assumed = text[text.index("**Assumed**") : text.index("## ")]
    for value in vars(ASSUMED).values():
        assert f"{value:g}" in assumed
    assert math.isclose(sum(count for _, count in BY_RUN["nodes_64"].nodes), 64)
    assert yaml.safe_load((SPECS / "aws.yaml").read_text())["max_workers"] < 63
