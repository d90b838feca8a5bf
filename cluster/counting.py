"""What a training run's rollouts weigh, and what its networks multiply, without driving.

Bytes are those of `Rollout` and `Batch`, products those of the networks themselves, called once:
the world model and its tokenizer without their numbers (PyTorch's `meta`), so that any size of it
can be counted anywhere. Products are in GFLOP, two for a multiplication with its addition.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cluster.train_policy import TrainPolicyRun
from drive_actors.policy import Policy, PolicyConfig
from drive_envs.plan import NUM_POINTS, NUM_VALUES
from drive_envs.protocol import NUM_CONTEXT
from world_model.autoencoder import AutoencoderConfig
from world_model.dit import EVERYTHING, NOTHING, Size, Told, WorldModel, WorldModelConfig
from world_model.expectation import Expected
from world_model.sampler import Memory
from world_model.tokenizer import Tokenizer
from world_model.windows import tell


def bytes_of(config: TrainPolicyRun) -> tuple[float, float]:
    """Return the bytes of a rollout for each of its steps, and of a minibatch likewise.

    As `Rollout` and `Batch` hold them: two images and 6 floats a frame; plans, actions and the like
    a step. A minibatch has the bottleneck's noise as well.
    """
    image = 2 * 3 * config.policy.height * config.policy.width
    frame = image + 4 * (1 + 3 + 2)
    plan = 4 * NUM_POINTS * NUM_VALUES + NUM_POINTS
    step = plan + 4 * 4 * 2 + 2 * 4 + 3  # three actions, log_probs; reward, lateral_error; flags
    length = config.rollout_steps
    of_rollout = frame * (NUM_CONTEXT + length + 1) / length + step + 8 / length
    noise = 0 if config.policy.bottleneck_bits is None else 4 * config.policy.num_features
    learnt = plan + 3 * 4 * 2 + 4 + 2  # two actions, log_probs; reward; flags
    length = config.queue.sequence_length
    frames = config.policy.num_past + length + 1
    of_batch = (frame + noise) * frames / length + learnt + 2 * 8 / length
    return of_rollout, of_batch


def on_meta(make: Callable[[Any], Any], config: Any) -> Any:
    """Build a network without its numbers, to count in."""
    with torch.device("meta"):
        return make(config)


def weights_bytes(config: PolicyConfig) -> int:
    """Return the bytes of a policy's weights, as they are published."""
    return sum(value.numel() * 4 for value in on_meta(Policy, config).parameters())


@cache
def learnt_gflop(config: PolicyConfig, length: int) -> float:
    """Count the products of learning from one step, forward and backward, in GFLOP."""
    policy = Policy(config)
    frames = config.num_past + length + 1
    images = torch.zeros(frames, 1, 3, config.height, config.width, dtype=torch.uint8)
    observation = {
        "narrow": images,
        "wide": images,
        "speed": torch.zeros(frames, 1, 1),
        "desire": torch.zeros(frames, 1, 3),
        "last_action": torch.zeros(frames, 1, 2),
    }
    with FlopCounterMode(display=False) as counter:
        output = policy.unroll(observation, None, num_context=config.num_past)
        parts = (*output.plan, output.action_mean, output.action_log_std, output.value)
        torch.stack([part.sum() for part in parts]).sum().backward()
    return counter.get_total_flops() / 1e9 / length


@cache
def call_gflop(size: Size, width: int, height: int, is_planning: bool) -> float:
    """Count the products of one call of a world model for one frame, in GFLOP.

    is_planning: the frame is finished, and planned from. Less those that are of a frame, not of a
    call: `expecting_gflop`.
    """
    model, memory, latents, told = outlined(size, width, height)
    planning, expecting = (EVERYTHING, NOTHING) if is_planning else (None, EVERYTHING)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        known = Expected(latents, latents)
        model(latents, told, None, memory.blocks, planning, expecting, expected=known)
    return counter.get_total_flops() / 1e9


@cache
def expecting_gflop(size: Size, width: int, height: int) -> float:
    """Count the products of encoding what the frame before shows, and what that lets expect."""
    model, _, _, told = outlined(size, width, height)
    tokenizer = on_meta(Tokenizer, AutoencoderConfig(latent_channels=model.config.latent_channels))
    images = torch.zeros(1, 2, 3, height, width, dtype=torch.uint8, device="meta")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        tokenizer.encode(images)
        model.expect(told._replace(tau=torch.ones_like(told.tau)))
    return counter.get_total_flops() / 1e9


def outlined(size: Size, width: int, height: int) -> tuple[WorldModel, Memory, Tensor, Told]:
    """Return a world model, what one scene remembers, and a frame with what is told; no values."""
    config = WorldModelConfig(size=size, width=width, height=height)
    memory = Memory.empty(config, 1, is_anchored=True, device="meta")
    pose = torch.zeros(1, 1, 3, dtype=torch.float64, device="meta")
    latents = torch.zeros(1, 1, *config.latent_shape, device="meta")
    place = memory.place[:, None]
    told = tell(latents, pose, place, memory.pose, memory.anchor_pose, memory.anchor_place)
    return on_meta(WorldModel, config), memory, latents, told


@cache
def decoding_gflop(width: int, height: int) -> float:
    """Count the products of turning one latent into both images, with our own autoencoder."""
    config = WorldModelConfig(width=width, height=height)
    tokenizer = on_meta(Tokenizer, AutoencoderConfig(latent_channels=config.latent_channels))
    with FlopCounterMode(display=False) as counter:
        tokenizer.decode(torch.zeros(1, *config.latent_shape, device="meta"))
    return counter.get_total_flops() / 1e9


def frame_gflop(size: Size, config: TrainPolicyRun) -> float:
    """Count the products of generating one frame: Euler steps, the plan, and the images."""
    of_image = config.world.width, config.world.height
    calls = config.service.sampler.num_steps * (1 if config.service.sampler.guidance == 1 else 2)
    steps = calls * call_gflop(size, *of_image, False) + expecting_gflop(size, *of_image)
    return steps + call_gflop(size, *of_image, True) + decoding_gflop(*of_image)
