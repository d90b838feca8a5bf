"""RLlib learns with our environment, network, losses and optimiser: the value is r / (1 - gamma).

Scenes are cut by the end of a fragment, after five steps, and truncated after seven. Neither ends
what is worth anything, so the value is that of a reward without end. RLlib's IMPALA and APPO
learn less by themselves, see `drive_learner.rllib_losses`; the module's test has it fail without.
"""

from copy import deepcopy
from dataclasses import asdict
from typing import Any

import pytest
import torch

from drive_actors.policy import Policy, PolicyConfig
from drive_envs.plan import NUM_POINTS, NUM_VALUES
from drive_envs.sleeping import SleepingConfig, SleepingVectorEnv
from drive_learner.learner import Learner, LearnerConfig, OptimizerConfig
from drive_learner.losses import LossConfig
from drive_learner.rllib_config import RllibLearning
from drive_learner.rllib_env import RllibDrivingEnv

pytestmark = [
    pytest.mark.slow,  # importing RLlib is
    pytest.mark.filterwarnings("ignore"),  # RLlib's own, of all kinds
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


def make_learner(loss: LossConfig, optimizer: OptimizerConfig) -> Any:
    """One learner of PPO, in this process and without Ray."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec

    from drive_learner.rllib_backend import training
    from drive_learner.rllib_losses import DrivingPpoLearner
    from drive_learner.rllib_module import DrivingModule

    torch.manual_seed(0)
    env = make_env(1)
    model = {"policy": asdict(POLICY), "max_seq_len": 6}
    spaces = env.single_observation_space, env.single_action_space
    config = (
        PPOConfig()
        .learners(
            learner_class=DrivingPpoLearner,
            learner_config_dict={"loss": loss, "optimizer": optimizer},
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=DrivingModule, model_config=model))
        .training(**training(RllibLearning(algorithm="ppo"), loss, optimizer))
    )
    return config.build_learner(spaces={"default_policy": spaces})


def policy_in(learner: Any) -> Policy:
    return learner.module["default_policy"].policy


def make_batch(learner: Any, acting: float) -> dict[str, Any]:
    """Two sequences of five frames as PPO's learner gets them, all acted on or none."""
    from ray.rllib.core.columns import Columns
    from ray.rllib.evaluation.postprocessing import Postprocessing

    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(2, 5, *shape, generator=generator)

    images = torch.randint(0, 256, (2, 2, 5, 3, 16, 16), generator=generator, dtype=torch.uint8)
    state = learner.module["default_policy"].get_initial_state()
    return {
        Columns.OBS: {
            "narrow": images[0],
            "wide": images[1],
            "speed": 10 + normal(1),
            "desire": torch.eye(3)[torch.zeros(2, 5, dtype=torch.long)],
            "last_action": 0.01 * normal(2),
            "teacher_plan": normal(NUM_POINTS, NUM_VALUES),
            "teacher_plan_valid": torch.ones(2, 5, NUM_POINTS, dtype=torch.int8),
            "teacher_action": 0.01 * normal(2),
            "acting": torch.full((2, 5, 1), acting),
        },
        Columns.STATE_IN: {key: value.expand(2, *value.shape) for key, value in state.items()},
        Columns.LOSS_MASK: torch.ones(2, 5, dtype=torch.bool),
        Columns.ACTIONS: normal(1),
        Columns.ACTION_LOGP: normal(),
        Columns.ACTION_DIST_INPUTS: normal(2),
        Columns.REWARDS: normal(),
        Postprocessing.ADVANTAGES: normal(),
        Postprocessing.VALUE_TARGETS: normal(),
    }


def gradients(learner: Any, acting: float) -> dict[str, torch.Tensor | None]:
    """Of every parameter of the policy, by its name."""
    batch = make_batch(learner, acting)
    total = learner.compute_loss_for_module(
        module_id="default_policy",
        config=learner.config,
        batch=batch,
        fwd_out=learner.module["default_policy"].forward_train(batch),
    )
    learner.compute_gradients({"default_policy": total})
    return {name: value.grad for name, value in policy_in(learner).named_parameters()}


def test_a_step_of_rllib_is_one_of_our_learner() -> None:
    """Clipped or not, RLlib's gradients being those of a loss that is divided by a weight."""
    optimizer = OptimizerConfig(
        learning_rate=0.01, beta1=0.8, beta2=0.9, weight_decay=0.3, max_gradient_norm=2.0
    )
    learner = make_learner(LOSS, optimizer)
    own = Learner(
        deepcopy(policy_in(learner)), LearnerConfig(loss=LOSS, optimizer=optimizer, device="cpu")
    )
    named = dict(own.policy.named_parameters())
    generator = torch.Generator().manual_seed(0)
    for size in (1e-7, 10.0, 0.01):  # AdamW's epsilon tells, the norm is clipped, neither
        divided = {}
        for name, value in policy_in(learner).named_parameters():
            gradient = size * torch.randn(value.shape, generator=generator)
            named[name].grad, divided[value] = gradient, gradient / LOSS.policy_gradient
        torch.nn.utils.clip_grad_norm_(named.values(), optimizer.max_gradient_norm)
        own.optimizer.step()
        learner.apply_gradients(learner.postprocess_gradients(divided))
        for name, value in policy_in(learner).named_parameters():
            torch.testing.assert_close(value, named[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("acting", [0.0, 1.0])
def test_every_parameter_has_a_gradient_whatever_the_minibatch_holds(acting: float) -> None:
    """Or learners that share their gradients would wait for each other for ever."""
    loss = LossConfig(plan=0.0, action=0.0)
    found = gradients(make_learner(loss, OptimizerConfig()), acting)
    for name, gradient in found.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        if name.startswith("plan_head") or not acting:
            assert not gradient.any(), name
    assert acting == any(gradient is not None and gradient.any() for gradient in found.values())


def test_a_gradient_step_of_two_learners_counts_once() -> None:
    from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

    from drive_learner.rllib_backend import metrics

    told = []
    for index in range(2):
        learner = make_learner(LOSS, OptimizerConfig())
        learner._set_learner_index_and_placement_group(learner_index=index, placement_group=None)
        for _ in range(3):
            gradients(learner, acting=1.0)
        told.append(learner.metrics.reduce())
    driver = MetricsLogger(root=True)
    driver.aggregate(told, key="learners")
    found = metrics(driver.compile())
    assert found["learner/gradient_steps"] == 3
    assert found["learner/steps_learnt"] == 2 * 3 * 10


def test_steps_dropped_are_counted_over_all_iterations() -> None:
    """As RLlib's IMPALA tells them: a count of each iteration's own, NaN where none was made."""
    from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

    from drive_learner.rllib_backend import Dropped

    driver, dropped = MetricsLogger(root=True), Dropped()
    assert dropped.add({}, by_group=0.0) == 0
    totals = []
    for by_aggregators, by_group in (((5, 2), 0.0), ((), 0.0), ((3,), 4.0), ((), 4.0)):
        for value in by_aggregators:
            key = ("aggregator_actors", "num_env_steps_dropped_lifetime")
            driver.log_value(key, value, reduce="sum")
        totals.append(dropped.add(driver.compile(), by_group))
    assert totals == [7, 7, 14, 14]


@pytest.mark.long
@pytest.mark.timeout(600)
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
