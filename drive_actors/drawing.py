"""Pictures of a rollout: what the actor saw, with the policy's plan and the teacher's on it."""

import numpy as np
import torch

from drive_actors.bottleneck import noise as bottleneck_noise
from drive_actors.policy import Policy
from drive_envs.camera import CAMERAS
from drive_envs.drawing import Picture, caption, draw_views
from drive_envs.plan import best_plan
from drive_envs.protocol import NUM_CONTEXT, Rollout


@torch.inference_mode()
def draw_rollout(rollout: Rollout, policy: Policy, scene: int = 0) -> list[Picture]:
    """Draw one scene of a rollout, a picture a step, with the plans `policy` makes of it.

    With the weights that acted they are the plans that the actor had in mind.
    """
    noise = bottleneck_noise(
        rollout.noise_seed,
        NUM_CONTEXT + rollout.num_steps + 1,
        rollout.num_scenes,
        policy.config.num_features,
    )
    num_steps = int(rollout.active[:, scene].sum())
    shown = slice(0, NUM_CONTEXT + num_steps)
    seen = {
        key: np.ascontiguousarray(value[shown, scene : scene + 1])
        for key, value in rollout.observation.items()
    }
    output = policy.unroll(
        {key: torch.from_numpy(value) for key, value in seen.items()},
        noise[shown, scene : scene + 1],
    )
    plans = best_plan(output.plan)[:, 0].numpy()
    return [
        draw_views(
            {name: seen[name][NUM_CONTEXT + step, 0] for name in CAMERAS},
            plan=plans[step],
            teacher=rollout.teacher_plan[step, scene],
            teacher_valid=rollout.teacher_plan_valid[step, scene],
            caption=caption(
                step,
                float(rollout.lateral_error[step, scene]),
                float(seen["speed"][NUM_CONTEXT + step, 0, 0]),
            ),
        )
        for step in range(num_steps)
    ]
