"""The driver's network as an RLModule of RLlib, the tokens of earlier frames being its state.

State: the tokens of the last `context - 1` frames. An actor hands it from step to step; a learner
begins a sequence with the actor's and encodes the frames of the sequence itself, as R2D2 does, so
what lies before the sequence is as old as the weights that made it. The noise of the bottleneck is
drawn by the actor and kept as a column, so that the learner repeats every token and, at equal
weights, every probability.

Where there is no state to hand on (context 1) RLlib is handed an empty one all the same: for a
module without state it lays sequences of L + 1 rows out as ones of L (RLlib 2.60).
"""

from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Float
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.rl_module.apis import (
    TARGET_NETWORK_ACTION_DIST_INPUTS,
    InferenceOnlyAPI,
    TargetNetworkAPI,
    ValueFunctionAPI,
)
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from drive_actors.policy import Policy, fresh_policy
from drive_actors.policy_file import config_from_json

NOISE, TOKENS = "bottleneck_noise", "tokens"
SPEED, PLAN = "speed", "plan"
SEEN = ("narrow", "wide", "speed", "desire", "last_action")

Batch = dict[str, Any]
Last = Float[Tensor, "batch time dim"]
Tokens = Float[Tensor, "batch past_and_time dim"]


class DrivingModule(TorchRLModule, ValueFunctionAPI, TargetNetworkAPI, InferenceOnlyAPI):
    """`Policy` for RLlib. model_config: `policy`, a PolicyConfig as JSON; `max_seq_len`."""

    def setup(self) -> None:
        self.policy = fresh_policy(config_from_json(self.model_config["policy"]))
        assert self.action_space is not None
        assert self.action_space.shape is not None
        self.num_actions = self.action_space.shape[0]

    def get_initial_state(self) -> dict[str, Any]:
        """Return an empty past of one scene."""
        config = self.policy.config
        return {TOKENS: torch.zeros(config.context - 1, config.model_dim)}

    def _forward_exploration(self, batch: Batch, **kwargs: Any) -> Batch:
        with torch.no_grad():
            noise = {}
            if self.policy.config.bottleneck_bits is not None:
                speed = batch[Columns.OBS]["speed"]
                shape = *speed.shape[:2], self.policy.config.num_features
                noise = {NOISE: torch.randn(shape, device=speed.device)}
            return self._act(self.policy, batch | noise) | noise

    def _forward_inference(self, batch: Batch, **kwargs: Any) -> Batch:
        with torch.no_grad():
            return self._act(self.policy, {k: v for k, v in batch.items() if k != NOISE})

    def _forward_train(self, batch: Batch, **kwargs: Any) -> Batch:
        last, _ = self._last(self.policy, batch)
        return {
            Columns.ACTION_DIST_INPUTS: self._distribution(self.policy, last),
            Columns.EMBEDDINGS: last,
        }

    def compute_values(self, batch: Batch, embeddings: Any = None) -> Float[Tensor, "batch time"]:
        """Return V of every frame; without embeddings (GAE asks so) nothing is differentiated."""
        if embeddings is None:
            with torch.no_grad():
                embeddings, _ = self._last(self.policy, batch)
        return self.policy.value_head(embeddings).float().squeeze(-1)

    def make_target_networks(self) -> None:
        """Keep a copy of the policy, for APPO."""
        self.target = cast(Policy, make_target_network(self.policy))

    def get_target_network_pairs(self) -> list[Any]:
        return [(self.policy, self.target)]

    def forward_target(self, batch: Batch) -> Batch:
        with torch.no_grad():
            last, _ = self._last(self.target, batch)
            return {TARGET_NETWORK_ACTION_DIST_INPUTS: self._distribution(self.target, last)}

    def get_non_inference_attributes(self) -> list[str]:
        return ["target"]

    def _act(self, policy: Policy, batch: Batch) -> Batch:
        last, tokens = self._last(policy, batch)
        kept = policy.config.context - 1
        return {
            Columns.ACTION_DIST_INPUTS: self._distribution(policy, last),
            Columns.STATE_OUT: {TOKENS: tokens[:, tokens.shape[1] - kept :]},
        }

    def _last(self, policy: Policy, batch: Batch) -> tuple[Last, Tokens]:
        """Read every frame of (batch, time) with those before it; return also all the tokens."""
        seen = {key: batch[Columns.OBS][key].flatten(0, 1) for key in SEEN}
        noise = batch[NOISE].flatten(0, 1) if NOISE in batch else None
        past = batch[Columns.STATE_IN][TOKENS]
        new = policy.tokens(seen, noise).unflatten(0, (len(past), -1))
        tokens = torch.cat([past, new], dim=1)
        # `Policy.last` takes ten or more, and reads the last of them only
        num = policy.config.num_past + 1
        filled = torch.nn.functional.pad(tokens, (0, 0, num - policy.config.context, 0))
        windows = filled.unfold(1, num, 1)
        last = policy.last(rearrange(windows, "b t d c -> (b t) c d"))
        return last.unflatten(0, (len(past), -1)), tokens

    def _distribution(self, policy: Policy, last: Last) -> Float[Tensor, "batch time inputs"]:
        mean, log_std = policy.action(last.flatten(0, 1))
        inputs = torch.cat([mean[:, : self.num_actions], log_std[:, : self.num_actions]], dim=-1)
        return inputs.unflatten(0, (len(last), -1))
