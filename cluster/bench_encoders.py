"""How long an image takes in each of the encoders that a policy can have, by `drive bench learner`.

Random pixels of both cameras, half of them each, go through an encoder forward alone, as an actor
does it, and forward and backward to every weight, as the learner does. There are as many of them as
in the learner's minibatch, on a CPU only as many as an encoder takes at once: the time of an image
is the same. The encoders take turns, several times over, and medians are reported. A turn is as
many passes as `LEAST` seconds hold: one pass of a small encoder is over before another process, to
which the scheduler has given the core, has had its slice. One thread of a CPU is timed by its own
clock, of which other processes take nothing.
"""

import logging
import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from cluster.progress import progress
from drive_actors.encoder import CHUNK
from drive_actors.policy import PolicyConfig, encoder_of
from drive_envs.camera import CAMERAS
from drive_envs.precision import Precision, autocast

log = logging.getLogger(__name__)

FORWARD, BOTH = "forward_ms", "forward_and_backward_ms"
LEAST = 0.1  # seconds that a turn takes, or more


def bench_encoders(
    policies: Mapping[str, PolicyConfig],
    *,
    num_images: int,
    num_repeats: int,
    precision: Precision,
    device: str,
) -> dict[str, dict[str, Any]]:
    """Return, by name, an encoder's parameters and its milliseconds an image; one for each camera.

    num_images: of each camera, in a minibatch of the learner.
    """
    networks = {name: encoders_of(policy, device) for name, policy in policies.items()}
    num_images = min(num_images, CHUNK) if device == "cpu" else num_images
    is_alone = device == "cpu" and torch.get_num_threads() == 1
    clock: dict[str, Any] = {"timer": time.thread_time} if is_alone else {}
    times: dict[str, dict[str, list[float]]] = {name: {FORWARD: [], BOTH: []} for name in policies}
    with progress("encoders", total=num_repeats * len(policies)) as meter:
        for repeat in range(-1, num_repeats):  # the first does not count
            for name, policy in policies.items():
                batch = images(policy, num_images, device)
                for way, work in ((FORWARD, forward), (BOTH, forward_and_backward)):
                    timer = Timer(
                        "work(networks, batch, precision)",
                        globals={
                            "work": work,
                            "networks": networks[name],
                            "batch": batch,
                            "precision": autocast(precision, device),
                        },
                        num_threads=torch.get_num_threads(),
                        **clock,
                    )
                    took = 1000 * timer.blocked_autorange(min_run_time=LEAST).median
                    if repeat >= 0:
                        times[name][way].append(took / (len(CAMERAS) * num_images))
                if repeat >= 0:
                    meter.advance(note=f"{name}: {times[name][BOTH][-1]:.2f} ms an image")
    figures: dict[str, dict[str, Any]] = {}
    for name, of_cameras in networks.items():
        num_parameters = sum(value.numel() for value in of_cameras[0].parameters())
        ways = {way: round(median(values), 3) for way, values in times[name].items()}
        figures[name] = {"parameters": num_parameters} | ways
        log.info(
            "encoder %s, %d parameters: %.3f ms an image forward, %.3f forward and backward",
            *(name, num_parameters, ways[FORWARD], ways[BOTH]),
        )
    return figures


def encoders_of(policy: PolicyConfig, device: str) -> nn.ModuleList:
    """Make the encoders of both cameras, with random weights."""
    torch.manual_seed(0)
    return nn.ModuleList(encoder_of(policy, top) for top in policy.tops).to(device)


def images(policy: PolicyConfig, num_images: int, device: str) -> list[Tensor]:
    """Make noise for both cameras."""
    generator = torch.Generator().manual_seed(0)
    size = num_images, 3, policy.height, policy.width
    return [
        torch.randint(0, 256, size, dtype=torch.uint8, generator=generator).to(device)
        for _ in CAMERAS
    ]


@torch.no_grad()
def forward(networks: nn.ModuleList, batch: list[Tensor], precision: torch.autocast) -> None:
    """Encode the images of both cameras, to the end."""
    with precision:
        outputs = [network(image) for network, image in zip(networks, batch, strict=True)]
    torch.stack([output.sum() for output in outputs]).cpu()


def forward_and_backward(
    networks: nn.ModuleList, batch: list[Tensor], precision: torch.autocast
) -> None:
    """Encode the images of both cameras and take the gradient of every weight, to the end."""
    networks.zero_grad()
    with precision:
        outputs = [network(image) for network, image in zip(networks, batch, strict=True)]
    torch.stack([output.float().sum() for output in outputs]).sum().backward()
    gradients = [value.grad.sum() for value in networks.parameters() if value.grad is not None]
    torch.stack(gradients).cpu()
