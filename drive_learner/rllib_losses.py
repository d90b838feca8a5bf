"""RLlib's learners with what they lack: imitation, a V-trace that bootstraps, our optimiser.

Two things are put right before RLlib computes its loss.

Rows that are no steps (context, scenes that wait, padding) are taken out of the loss mask.

Behind each sequence RLlib puts a row with the frame it was left in. For V-trace it zeroes that
row's discount but not its reward r = 0, whose temporal difference -V then cancels the V that the
step before was bootstrapped with: at a constant reward of 1 and gamma 0.9 a value of 3.8 is learnt
in place of 10 (RLlib 2.60). With r = V in such rows the difference is 0.

Added to its loss is the imitation of the teacher, as `drive_learner.losses` has it: the plan's MHP
Laplace NLL, the action's NLL. RLlib's loss counts the policy gradient once, so all is divided by
that one's weight. So are the gradients, and with them AdamW's epsilon and the bound of their norm.

Several learners share their gradients (DDP) and wait until each has one of every parameter. What a
minibatch says nothing of therefore has a gradient of 0, never none.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from ray.rllib.algorithms.appo.torch.appo_torch_learner import APPOTorchLearner
from ray.rllib.algorithms.impala.torch.impala_torch_learner import IMPALATorchLearner
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from torch import Tensor

from drive_actors.action import log_probs, normalized_from_command
from drive_actors.policy import Policy
from drive_envs.plan import negative_log_likelihood
from drive_learner.learner import OptimizerConfig
from drive_learner.losses import LossConfig, masked_mean
from drive_learner.rllib_module import DrivingModule

Batch = dict[str, Any]

STEPS, GRADIENTS = "num_steps_learnt", "num_gradient_steps"  # in all, of the learners' metrics
EPSILON = 1e-8  # AdamW's, of gradients that nothing has divided


class DrivingLearner(TorchLearner):
    """What the three have in common; `config.learner_config_dict` has `loss` and `optimizer`."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        module = self.module[module_id].unwrapped()
        assert isinstance(module, DrivingModule)
        settings = self.config.learner_config_dict
        optimizer = adamw(module.policy, settings["optimizer"], settings["loss"])
        self.register_optimizer(
            module_id=module_id,
            optimizer=optimizer,
            params=list(module.policy.parameters()),
            lr_or_lr_schedule=config.lr,
        )

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: Batch, fwd_out: Batch
    ) -> Any:
        module = self.module[module_id].unwrapped()
        assert isinstance(module, DrivingModule)
        mask = batch[Columns.LOSS_MASK] & (batch[Columns.OBS]["acting"][..., 0] > 0)
        self.metrics.log_value((module_id, STEPS), int(mask.sum()), reduce="lifetime_sum")
        # All learners take each step together, and their metrics are added.
        is_first = self._learner_index == 0
        self.metrics.log_value((module_id, GRADIENTS), int(is_first), reduce="lifetime_sum")
        nothing = 0.0 * torch.stack([value.sum() for value in module.policy.parameters()]).sum()
        if not mask.any():  # RLlib would divide by 0
            return nothing
        with torch.no_grad():
            value = module.compute_values(batch, embeddings=fwd_out[Columns.EMBEDDINGS])
        mended = {
            Columns.LOSS_MASK: mask,
            Columns.REWARDS: torch.where(mask, batch[Columns.REWARDS], value),
        }
        total: Any = super().compute_loss_for_module(
            module_id=module_id, config=config, batch={**batch, **mended}, fwd_out=fwd_out
        )
        self.metrics.log_dict(
            {
                "value": masked_mean(value, mask),
                "reward": masked_mean(batch[Columns.REWARDS], mask),
                "acting_share": mask.float().mean(),
            },
            key=module_id,
            window=1,
        )
        loss: LossConfig = self.config.learner_config_dict["loss"]
        if not (loss.plan or loss.action):
            return total + nothing
        parts = imitation(module.policy, batch, fwd_out[Columns.EMBEDDINGS], mask, loss)
        self.metrics.log_dict(parts, key=module_id, window=1)
        imitated = loss.plan * parts["plan_loss"] + loss.action * parts["action_loss"]
        return total + imitated / loss.policy_gradient + nothing


class DrivingImpalaLearner(DrivingLearner, IMPALATorchLearner):
    """IMPALA's."""


class DrivingAppoLearner(DrivingLearner, APPOTorchLearner):
    """APPO's."""


class DrivingPpoLearner(DrivingLearner, PPOTorchLearner):
    """PPO's."""


LEARNERS = {"impala": DrivingImpalaLearner, "appo": DrivingAppoLearner, "ppo": DrivingPpoLearner}


def adamw(policy: Policy, config: OptimizerConfig, loss: LossConfig) -> torch.optim.AdamW:
    """Return the optimiser of `drive_learner.learner`, for gradients of RLlib's loss."""
    parameters = list(policy.parameters())
    matrices = [value for value in parameters if value.ndim >= 2]
    others = [value for value in parameters if value.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=EPSILON / loss.policy_gradient,
    )


def imitation(
    policy: Policy,
    batch: Batch,
    last: Float[Tensor, "batch time dim"],
    mask: Bool[Tensor, "batch time"],
    loss: LossConfig,
) -> dict[str, Tensor]:
    """Return `plan_loss` and `action_loss` of the frames that are acted on."""
    seen = {
        key: batch[Columns.OBS][key][mask]
        for key in ("speed", "teacher_plan", "teacher_plan_valid", "teacher_action")
    }
    taught = last[mask]
    mean, log_std = policy.action(taught)
    teacher = normalized_from_command(seen["teacher_action"], seen["speed"])
    balance = (2 * loss.action_beta * log_std.detach()).exp()
    nll = -(balance * log_probs(mean, log_std, teacher)).sum(-1)
    valid = seen["teacher_plan_valid"] > 0
    has_plan = valid.any(-1)
    plan = negative_log_likelihood(
        policy.plan(taught[has_plan], seen["speed"][has_plan]),
        seen["teacher_plan"][has_plan],
        valid[has_plan],
    )
    return {
        "plan_loss": plan.sum() / max(1, len(plan)),
        "action_loss": nll.sum() / max(1, len(nll)),
    }
