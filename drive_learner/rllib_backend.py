"""RLlib in place of the project's own loop: the same environment, network and losses.

`algorithm` builds one of RLlib's with them. The weights that it has learnt fit our `Policy` as they
are. RLlib is told of its actors, minibatches and losses by settings that mean the same here, and
is given our optimiser; what it has no settings for (the averaged weights, the learning rate's
schedule, habits, reuse and the accounts of every rollout) it does without.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from math import isnan
from typing import Any

from gymnasium.vector import VectorEnv
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune.registry import register_env
from torch import Tensor, from_numpy

from drive_actors.policy import Policy, PolicyConfig
from drive_learner.learner import OptimizerConfig
from drive_learner.losses import LossConfig
from drive_learner.pool import PoolConfig
from drive_learner.rllib_config import RllibLearning
from drive_learner.rllib_losses import GRADIENTS, LEARNERS, STEPS
from drive_learner.rllib_module import DrivingModule

ENV = "drive"
OF_POLICY = "policy."  # what our parameters are called in the module's
DIFFERENCE = "diff_num_grad_updates_vs_sampler_policy"

MakeEnv = Callable[[int], VectorEnv]


def algorithm(
    config: RllibLearning,
    make_env: MakeEnv,
    policy: PolicyConfig,
    *,
    loss: LossConfig,
    optimizer: OptimizerConfig,
    actors: PoolConfig | None,
    num_scenes: int,
    seed: int = 0,
    num_gpus: float = 0.0,
    seconds: float = 10.0,
) -> Algorithm:
    """Build the algorithm, and start its actors on the Ray cluster that this process is part of.

    make_env(n): builds `RllibDrivingEnv` with n scenes; called in each actor, and once here for its
    spaces. actors: None drives in this process. seconds: of one `train()`, at least. num_gpus: of a
    learner.
    """
    config.check(loss)
    spaces = make_env(1)
    register_env(ENV, lambda context: make_env(context["num_envs"]))
    kinds: dict[str, Callable[[], AlgorithmConfig]] = {
        "impala": IMPALAConfig,
        "appo": APPOConfig,
        "ppo": PPOConfig,
    }
    built = (
        kinds[config.algorithm]()
        .environment(
            ENV,
            observation_space=spaces.single_observation_space,
            action_space=spaces.single_action_space,
            normalize_actions=False,
            clip_actions=False,
        )
        .env_runners(
            num_envs_per_env_runner=num_scenes,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length=config.fragment_length,
            **driving(actors),
        )
        .learners(
            num_learners=config.num_learners,
            num_gpus_per_learner=num_gpus,
            num_aggregator_actors_per_learner=config.num_aggregators,
            learner_class=LEARNERS[config.algorithm],
            learner_config_dict={"loss": loss, "optimizer": optimizer},
        )
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=DrivingModule,
                model_config={
                    "policy": asdict(policy),
                    # the frame that a sequence was left in is a row of it
                    "max_seq_len": config.fragment_length + 1,
                },
            )
        )
        .reporting(min_time_s_per_iteration=seconds)
        .debugging(seed=seed)
        .training(**training(config, loss, optimizer))
    )
    spaces.close()
    return built.build_algo()


def driving(actors: PoolConfig | None) -> dict[str, Any]:
    """Return the actors in RLlib's words."""
    if actors is None:
        return {"num_env_runners": 0}
    return {
        "num_env_runners": actors.max_actors,
        "num_cpus_per_env_runner": actors.num_cpus,
        "num_gpus_per_env_runner": actors.num_gpus,
        "custom_resources_per_env_runner": dict(actors.resources),
        "max_requests_in_flight_per_env_runner": actors.in_flight,
    }


def training(config: RllibLearning, loss: LossConfig, optimizer: OptimizerConfig) -> dict[str, Any]:
    """Return the losses, the optimiser and the minibatch in RLlib's words."""
    minibatch = config.fragment_length * config.num_sequences
    common = {
        "gamma": loss.discount,
        "lr": optimizer.learning_rate,
        # of a loss that is divided by the policy gradient's weight, see `rllib_losses`
        "grad_clip": optimizer.max_gradient_norm / loss.policy_gradient,
        "grad_clip_by": "global_norm",
        # RLlib's IMPALA counts (V - v)^2 half as we do, PPO whole
        "vf_loss_coeff": loss.value / loss.policy_gradient,
        "entropy_coeff": loss.entropy / loss.policy_gradient,
        "train_batch_size_per_learner": minibatch,
    }
    if config.algorithm == "ppo":
        return common | {
            "vf_loss_coeff": 0.5 * loss.value / loss.policy_gradient,
            "vf_clip_param": float("inf"),
            "train_batch_size_per_learner": minibatch * config.minibatches,
            "minibatch_size": minibatch,
            "num_epochs": config.num_epochs,
            "clip_param": config.clip,
            "lambda_": config.gae_lambda,
            "use_kl_loss": False,
        }
    common |= {
        "broadcast_interval": config.broadcast_every,
        "vtrace_clip_rho_threshold": loss.rho_max,
        "vtrace_clip_pg_rho_threshold": loss.rho_max,
    }
    if config.algorithm == "appo":
        # each minibatch once, as the others; its ring would learn from each twice
        common |= {"clip_param": config.clip, "use_kl_loss": False, "use_circular_buffer": False}
    return common


def weights(algo: Algorithm) -> dict[str, Tensor]:
    """Return the weights of our `Policy` that the learner has now."""
    assert algo.learner_group is not None
    state = algo.learner_group.get_state(components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}")
    module = state[COMPONENT_LEARNER][COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]
    return {
        name.removeprefix(OF_POLICY): from_numpy(value.copy())
        for name, value in module.items()
        if name.startswith(OF_POLICY)
    }


def policy_of(algo: Algorithm, config: PolicyConfig) -> Policy:
    """Return the policy learnt so far, in evaluation mode."""
    policy = Policy(config)
    policy.load_state_dict(weights(algo))
    return policy.eval()


def metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Return what one `train()` says, as `area/name` metrics."""
    learner = result.get("learners", {}).get(DEFAULT_MODULE_ID, {})
    driving = result.get("env_runners", {})
    named = {
        "learner/gradient_steps": learner.get(GRADIENTS),
        "learner/steps_learnt": learner.get(STEPS),
        "learner/policy_lag": learner.get(DIFFERENCE),
        "loss/total": learner.get("total_loss"),
        "loss/plan": learner.get("plan_loss"),
        "loss/action": learner.get("action_loss"),
        "learner/value": learner.get("value"),
        "rollout/reward": learner.get("reward"),
        "rollout/return": driving.get("episode_return_mean"),
        "rollout/length": driving.get("episode_len_mean"),
        "actor/steps": driving.get("num_env_steps_sampled_lifetime"),
    }
    return {name: float(value) for name, value in named.items() if value is not None}


class Dropped:
    """The environment steps that RLlib has thrown away since it was built, for want of a learner.

    The learners' group counts by itself; what `train()` says of it is the mean over an iteration.
    Before the aggregators, each iteration counts from 0, "lifetime" or not, and is NaN where they
    were sent nothing (RLlib 2.60).
    """

    def __init__(self) -> None:
        self._before_aggregators = 0.0

    def add(self, result: Mapping[str, Any], by_group: float) -> float:
        """Count what one `train()` says, and what the group has counted; return all so far."""
        told = result.get("aggregator_actors", {}).get("num_env_steps_dropped_lifetime", 0.0)
        self._before_aggregators += 0.0 if isnan(told) else float(told)
        return by_group + self._before_aggregators


def dropped_by_group(algo: Algorithm) -> float:
    """Return the environment steps that the learners had no room for so far."""
    assert algo.learner_group is not None
    return float(algo.learner_group.get_stats()["learner_group_ts_dropped_lifetime"])
