"""A transformer over frames of tokens, told by adaLN what kind of frame each is.

A block is pre-norm attention and MLP; scale, shift and gate of both come from the frame's condition
(adaLN-Zero, Peebles and Xie, 2023), which varies along time. Queries and keys are RMS-normed. Keys
and values of a frame depend on the frames that it may see and on nothing else, so that a frame that
is finished can be kept (`Memory`) and seen by those after it.

The module does not know what a frame shows, nor which frames may see which.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from world_model.rotary import rotate

MAX_SCORES = 1 << 26  # kept in memory at once, of two bytes each
GROUP = 2  # frames that attend together on a CPU

Tokens = Float[Tensor, "batch token dim"]
Heads = Float[Tensor, "batch head token head_dim"]
Queries = Float[Tensor, "batch head asking head_dim"]
Condition = Float[Tensor, "batch frame dim"]
Mask = Bool[Tensor, "asking asked"]


class KeyValue(NamedTuple):
    """Keys (already turned to their places) and values of some tokens in one block."""

    key: Heads
    value: Heads


Memory = Sequence[KeyValue]


class Group(NamedTuple):
    """Frames that attend together: which, whom any of them sees, and which token sees which."""

    frames: slice
    seen: list[int]
    mask: Mask


class Sight(NamedTuple):
    """Which of the frames of a call see which, each of `space` tokens.

    mask: of all tokens. groups: the same, some frames at a time, without those that none of them
    sees; a CPU computes no more than these in float32.
    """

    space: int
    mask: Mask
    groups: list[Group]


def sight_of(frames: Bool[Tensor, "frame frame"], space: int) -> Sight:
    """Say who sees whom, of frames (row i sees column j) of `space` tokens."""

    def of_tokens(mask: Tensor) -> Mask:
        return mask.repeat_interleave(space, 0).repeat_interleave(space, 1)

    groups = []
    for begin in range(0, len(frames), GROUP):
        rows = frames[begin : begin + GROUP]
        seen = rows.any(0).nonzero()[:, 0]
        chosen = slice(begin, begin + len(rows))
        groups.append(Group(chosen, seen.tolist(), of_tokens(rows[:, seen])))
    return Sight(space, of_tokens(frames), groups)


class Rotation(NamedTuple):
    """Cosines and sines of the tokens' places, (batch or 1, token, head_dim / 2)."""

    cos: Tensor
    sin: Tensor


class Block(nn.Module):
    """Attention over all frames that a token may see, then an MLP."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.modulation = nn.Linear(dim, 6 * dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim)
        )
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Tokens,
        condition: Condition,
        rotation: Rotation,
        sight: Sight | None,
        seen: KeyValue | None,
    ) -> tuple[Tokens, KeyValue]:
        """Return the tokens after the block, and their keys and values.

        sight: which tokens see which of the same call, None for all. seen: what all see besides;
        its last tokens are room, into which those of this call are written, so that nothing is
        copied.
        """
        parts = self.modulation(condition).chunk(6, dim=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        attended, own = self.attend(modulated(x, shift, scale), rotation, sight, seen)
        x = x + gated(attended, gate)
        return x + gated(self.mlp(modulated(x, mlp_shift, mlp_scale)), mlp_gate), own

    def attend(
        self, x: Tokens, rotation: Rotation, sight: Sight | None, seen: KeyValue | None
    ) -> tuple[Tokens, KeyValue]:
        """Let each token gather from those it may see."""
        split = "batch token (part head dim) -> part batch head token dim"
        query, key, value = rearrange(self.qkv(x), split, part=3, head=self.num_heads).unbind()
        query, key = (normed(part).to(value.dtype) for part in (query, key))
        query, key = (rotate(part, *rotation).to(value.dtype) for part in (query, key))
        own = KeyValue(key, value)
        if seen is not None:
            room = seen.key.shape[2] - key.shape[2]
            seen.key[:, :, room:], seen.value[:, :, room:] = key, value
            key, value = seen
        if sight is None:
            attended = attention(query, key, value, None)
        elif seen is None and query.device.type == "cpu" and query.dtype == torch.float32:
            attended = attention_by_frames(query, key, value, sight)
        else:
            attended = attention(query, key, value, sight.mask)
        return self.out(rearrange(attended, "batch head token dim -> batch token (head dim)")), own


def attention_by_frames(query: Heads, key: Heads, value: Heads, sight: Sight) -> Heads:
    """Attend a few frames at a time, each group to those alone that it sees.

    PyTorch computes all scores and masks them; of a training window six in ten are not wanted. For
    bf16, whose products are fast, there is nothing to gain.
    """
    queries, keys, values = (part.split(sight.space, 2) for part in (query, key, value))
    attended = []
    for group in sight.groups:
        asking = torch.cat(queries[group.frames], 2)
        key, value = (torch.cat([part[i] for i in group.seen], 2) for part in (keys, values))
        attended.append(attention(asking, key, value, None if group.mask.all() else group.mask))
    return torch.cat(attended, 2)


def attention(query: Queries, key: Heads, value: Heads, mask: Mask | None) -> Queries:
    """Let queries gather from the values whose keys are like them, where `mask` lets them."""
    num_scores = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
    is_bf16_on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16
    if is_bf16_on_cpu and num_scores <= MAX_SCORES:
        return attention_by_products(query, key, value, mask)
    # Of two or four dimensions: with three, PyTorch computes all products in full on the CPU.
    mask = None if mask is None else mask[None, None]
    return scaled_dot_product_attention(query, key, value, attn_mask=mask)


def attention_by_products(query: Queries, key: Heads, value: Heads, mask: Mask | None) -> Queries:
    """Attend by two matrix products with all scores in memory.

    PyTorch's fused attention takes twice as long for bf16 on a CPU, backward included: it does not
    use the processor's bf16 products as these do.
    """
    query, shape = query.flatten(0, 1) * query.shape[-1] ** -0.5, query.shape
    key, value = key.flatten(0, 1), value.flatten(0, 1)
    if mask is None:
        scores = query @ key.mT
    else:
        unseen = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
        scores = torch.baddbmm(unseen.expand(len(query), *mask.shape), query, key.mT)
    return (scores.softmax(dim=-1) @ value).view(shape)


def normed(x: Tensor) -> Tensor:
    """Bring the last dimension to a root mean square of one."""
    return rms_norm(x, x.shape[-1:])


def modulated(x: Tokens, shift: Condition, scale: Condition) -> Tokens:
    """Norm tokens, then scale and shift each as its frame says."""
    frames = rearrange(
        normed(x), "batch (frame space) dim -> batch frame space dim", frame=scale.shape[1]
    )
    return (frames * (1 + scale[:, :, None]) + shift[:, :, None]).flatten(1, 2)


def gated(x: Tokens, gate: Condition) -> Tokens:
    """Weigh each token as its frame says."""
    return (x.unflatten(1, (gate.shape[1], -1)) * gate[:, :, None]).flatten(1, 2)
