"""The policy inside RLlib's module is the policy: step by step, sequence by sequence, and alone."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from drive_actors.policy import PolicyConfig
from drive_envs.environment import observation_space
from drive_envs.protocol import NUM_CONTEXT

pytestmark = [
    pytest.mark.slow,  # importing RLlib is
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # RLlib's own
]

CONFIG = PolicyConfig(
    width=16,
    height=16,
    channels=(4, 4, 4),
    num_features=16,
    bottleneck_bits=20.0,
    model_dim=16,
    num_layers=1,
    num_heads=2,
    num_hypotheses=1,
)


def make_module(config: PolicyConfig, num_actions: int = 1):
    from gymnasium import spaces

    from drive_learner.rllib_module import DrivingModule

    torch.manual_seed(0)
    return DrivingModule(
        observation_space=observation_space(config.width, config.height),
        action_space=spaces.Box(-np.inf, np.inf, (num_actions,), np.float32),
        model_config={"policy": asdict(config), "max_seq_len": 20},
    )


def frames(num: int, batch: int) -> dict[str, torch.Tensor]:
    """(batch, num, ...)."""
    generator = torch.Generator().manual_seed(1)
    images = {
        name: torch.randint(0, 256, (batch, num, 3, 16, 16), generator=generator, dtype=torch.uint8)
        for name in ("narrow", "wide")
    }
    return images | {
        "speed": 10 + torch.randn(batch, num, 1, generator=generator),
        "desire": torch.eye(3).repeat(batch, num, 1, 1)[:, :, 0],
        "last_action": 0.01 * torch.randn(batch, num, 2, generator=generator),
    }


def stepped(module, seen, num: int):
    """Drive step by step from an empty state; return the columns, and the state before each."""
    batch = len(seen["speed"])
    state = {k: v.expand(batch, *v.shape) for k, v in module.get_initial_state().items()}
    outputs, states = [], []
    for step in range(num):
        states.append(state)
        now = {key: value[:, step : step + 1] for key, value in seen.items()}
        outputs.append(module.forward_exploration({"obs": now, "state_in": state}))
        state = outputs[-1]["state_out"]
    columns = {
        key: torch.cat([output[key] for output in outputs], dim=1)
        for key in outputs[0]
        if key != "state_out"
    }
    return columns, states


@pytest.mark.parametrize("context", [1, 4, NUM_CONTEXT + 1, 12])
def test_a_sequence_gives_the_learner_what_the_steps_gave_the_actor(context: int) -> None:
    module = make_module(replace(CONFIG, context=context))
    seen = frames(14, batch=3)
    columns, states = stepped(module, seen, 14)
    for begin, end in ((0, 14), (5, 12)):
        sequence = {key: value[:, begin:end] for key, value in seen.items()}
        batch = {
            "obs": sequence,
            "state_in": states[begin],
            "bottleneck_noise": columns["bottleneck_noise"][:, begin:end],
        }
        learnt = module.forward_train(batch)["action_dist_inputs"]
        torch.testing.assert_close(
            learnt.detach(), columns["action_dist_inputs"][:, begin:end], rtol=1e-4, atol=1e-5
        )


def test_with_ten_frames_seen_it_says_what_the_policy_says() -> None:
    module = make_module(CONFIG, num_actions=2)
    seen = frames(NUM_CONTEXT + 4, batch=2)
    columns, states = stepped(module, seen, NUM_CONTEXT + 4)
    noise = columns["bottleneck_noise"]
    output = module.policy.unroll(
        {key: value.transpose(0, 1) for key, value in seen.items()}, noise.transpose(0, 1)
    )
    mean, log_std = columns["action_dist_inputs"][:, NUM_CONTEXT:].chunk(2, dim=-1)
    torch.testing.assert_close(
        mean, output.action_mean.detach().transpose(0, 1), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        log_std, output.action_log_std.detach().transpose(0, 1), rtol=1e-4, atol=1e-5
    )
    whole = {"obs": seen, "state_in": states[0], "bottleneck_noise": noise}
    values = module.compute_values(whole)[:, NUM_CONTEXT:]
    torch.testing.assert_close(values, output.value.detach().transpose(0, 1), rtol=1e-4, atol=1e-5)


def test_evaluation_has_no_noise() -> None:
    module = make_module(CONFIG)
    seen = {key: value[:, :1] for key, value in frames(1, batch=2).items()}
    state = {k: v.expand(2, *v.shape) for k, v in module.get_initial_state().items()}
    once, again = (module.forward_inference({"obs": seen, "state_in": state}) for _ in range(2))
    torch.testing.assert_close(once["action_dist_inputs"], again["action_dist_inputs"])
    noisy = module.forward_exploration({"obs": seen, "state_in": state})
    assert not torch.allclose(once["action_dist_inputs"], noisy["action_dist_inputs"])


def test_only_the_policy_is_sent_to_actors() -> None:
    module = make_module(CONFIG)
    module.make_target_networks()
    sent = module.get_state(inference_only=True)
    assert {name.split(".")[0] for name in sent} == {"policy"}
    assert any(name.startswith("target.") for name in module.get_state())
