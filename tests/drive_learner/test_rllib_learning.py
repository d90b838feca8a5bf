"""RLlib learns with our environment, network and losses: the value is r / (1 - gamma).

Scenes are cut by the end of a fragment, after five steps, and truncated after seven. Neither ends
what is worth anything, so the value is that of a reward without end. RLlib's IMPALA and APPO
learn less by themselves, see `drive_learner.rllib_losses`; the module's test has it fail without.
"""

import pytest
import torch

from drive_actors.policy import PolicyConfig
from drive_envs.sleeping import SleepingConfig, SleepingVectorEnv
from drive_learner.learner import OptimizerConfig
from drive_learner.losses import LossConfig
from drive_learner.rllib_config import RllibLearning
from drive_learner.rllib_env import RllibDrivingEnv

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore"),  # RLlib's own, of all kinds
    pytest.mark.timeout(600),
]

POLICY = PolicyConfig(
    width=16,
    height=16,
    channels=(2, 2, 2),
    num_features=8,
    bottleneck_bits=20.0,
    model_dim=16,
    num_layers=1,
    num_heads=2,
    context=2,
    num_hypotheses=1,
)
LOSS = LossConfig(
    plan=0.0, action=1.0, action_beta=1.0, policy_gradient=0.1, value=1.0, entropy=0.0, discount=0.5
)
VALUE = 2.0  # 1 / (1 - 0.5)
CUT = 1.61  # the mean of 1, 1.5, 1.75, ...: with the bootstrap cancelled at every cut


def make_env(num_scenes: int) -> RllibDrivingEnv:
    env = SleepingVectorEnv(SleepingConfig(width=16, height=16, num_steps=7), num_scenes)
    return RllibDrivingEnv(env, num_actions=1, is_taught=True, has_context=False)


@pytest.mark.parametrize("name", ["ppo", "impala", "appo"])
def test_the_value_of_a_reward_without_end_is_learnt(name, local_ray) -> None:
    from drive_learner.rllib_backend import algorithm, metrics, policy_of

    torch.manual_seed(0)
    config = RllibLearning(
        algorithm=name, fragment_length=5, num_sequences=8, minibatches=2, num_epochs=3
    )
    algo = algorithm(
        config,
        make_env,
        POLICY,
        loss=LOSS,
        optimizer=OptimizerConfig(learning_rate=0.01, max_gradient_norm=10.0),
        actors=None,
        num_scenes=4,
        seconds=0.5,
    )
    try:
        found = {}
        while found.get("learner/gradient_steps", 0) < 150:
            found = found | metrics(algo.train())
        policy = policy_of(algo, POLICY)
    finally:
        algo.stop()
    assert abs(found["learner/value"] - VALUE) < 0.15 < VALUE - CUT
    assert found["rollout/reward"] == 1
    # the teacher of this environment asks for no acceleration at all
    history = torch.randn(64, 10, POLICY.model_dim)
    with torch.inference_mode():
        mean, _ = policy.act(history)
    assert mean[:, 0].abs().mean() < 0.2
