"""History as the model itself makes it: what it learns from has to be what it will live on.

In a rollout every frame is made from frames that were made before, with all that is wrong with
them; a model that has only ever seen recorded history does not know how to mend it. So a share of
the windows have a history that the model, as it stands, has generated along the recorded poses,
and the frames to be made of it are the recorded ones, which is what it should have made of them
(self-forcing, Huang et al. 2025; DAgger, Ross et al. 2011, for the frames of a video).

Rollouts are made by several scenes at a time, a window's targets at once, and are carried on where
they were: so windows from all along a rollout are seen, at the price of generating each frame once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from world_model.sampler import Anchors, Sampler
from world_model.windows import Window, WindowSampler, stack


@dataclass(frozen=True, kw_only=True)
class OwnRolloutsConfig:
    """How much of the history is the model's own.

    share: of a minibatch's windows, 0 for none. num_frames: of a rollout. num_scenes: rolled out
    side by side. num_steps, temperature: of a frame, see `sampler`. first_step: gradient steps
    before which there is nothing to be learnt from what the model makes. growth: after so many
    more a rollout is one window longer, until it has all of its frames: what is lost in the first
    second cannot be mended in the fifth.
    """

    share: float = 0.0
    num_frames: int = 40
    num_scenes: int = 16
    num_steps: int = 4
    temperature: float = 0.0
    first_step: int = 1000
    growth: int = 500

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"own_rollouts.share is {self.share}, not within 0..1")
        for name in ("num_frames", "num_scenes", "num_steps", "growth"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"own_rollouts.{name} must be 1 or more, got {getattr(self, name)}"
                )


class OwnRollouts:
    """Rolls scenes out while the model is trained, and cuts windows out of them.

    windows: draws the scenes, of `num_context` + num_frames frames. numbers: those of a minibatch
    that are of this process. What is made depends on the seed, the gradient step and the weights
    alone, but where a run goes on in the middle of a rollout: then it is made again from its
    beginning, with the weights there are.

    Raises ValueError when a rollout is not made of whole windows.
    """

    def __init__(
        self,
        sampler: Sampler,
        windows: WindowSampler,
        config: OwnRolloutsConfig,
        *,
        seed: int,
        numbers: Sequence[int],
        num_targets: int,
    ) -> None:
        if config.num_frames % num_targets:
            raise ValueError(
                f"own_rollouts.num_frames is {config.num_frames}, not a multiple of "
                f"objective.num_targets, which is {num_targets}"
            )
        self.sampler, self.windows, self.config = sampler, windows, config
        self.seed, self.numbers, self.num_targets = seed, numbers, num_targets
        self.num_context = sampler.num_history + 1
        self.num_turns = max(1, config.num_scenes // len(numbers))
        self._cycle = -1
        self._generated = 0
        self._scenes: Window

    def minibatch(self, step: int) -> Window:
        """Return the windows of a gradient step, one for each number, `shown` by the model."""
        num_parts = self.config.num_frames // self.num_targets
        cycle, place = divmod(step, num_parts * self.num_turns)
        part, turn = divmod(place, self.num_turns)
        if cycle != self._cycle:
            self._begin(cycle)
        longest = 1 + max(0, step - self.config.first_step) // self.config.growth
        while self._generated <= part:
            self._go_on(is_new=self._generated % longest == 0)
        # The frames before the first target that it sees, and the targets.
        first = 1 + part * self.num_targets
        rows = slice(first, first + self.sampler.num_history + self.num_targets)
        scenes = slice(turn * len(self.numbers), (turn + 1) * len(self.numbers))
        return cut_window(self._scenes, scenes, rows)

    def _begin(self, cycle: int) -> None:
        """Draw other scenes."""
        self._cycle, self._generated = cycle, 0
        rngs = [
            np.random.default_rng([self.seed, cycle, turn, number])
            for turn in range(self.num_turns)
            for number in self.numbers
        ]
        scenes = stack([self.windows.draw(rng, is_anchored=True) for rng in rngs])
        self._scenes = scenes.to(next(self.sampler.model.parameters()).device)

    def _go_on(self, *, is_new: bool) -> None:
        """Generate the next targets of all scenes from what was generated before, or recorded."""
        scenes, start = self._scenes, self.num_context + self._generated * self.num_targets
        context = slice(start - self.num_context, start)
        if is_new:
            scenes.shown[:, context] = scenes.frames[:, context]
        last = scenes.frames.shape[1]
        anchors = Anchors(scenes.anchors, scenes.anchor_poses, scenes.wait + last - start)
        seeds = np.random.SeedSequence(
            [self.seed, self._cycle, self._generated, self.numbers[0]]
        ).generate_state(1)
        generator = torch.Generator(scenes.frames.device).manual_seed(int(seeds[0]))
        memory, _ = self.sampler.begin(scenes.shown[:, context], scenes.poses[:, context], anchors)
        for row in range(start, start + self.num_targets):
            shape = scenes.frames[:, row].shape
            noise = torch.randn(shape, generator=generator, device=generator.device)
            made = self.sampler.step(memory, scenes.poses[:, row], noise)
            scenes.shown[:, row], scenes.moved[:, row] = made.latent, made.moved
        self._generated += 1


def cut_window(window: Window, samples: slice, frames: slice) -> Window:
    """Cut some frames of some samples out of a longer window."""
    of_frames = ("frames", "shown", "moved", "poses", "plan", "plan_valid")
    parts = {
        name: part[samples, frames] if name in of_frames else part[samples]
        for name, part in window._asdict().items()
    }
    later = window.frames.shape[1] - frames.stop
    return Window(**parts | {"wait": parts["wait"] + later})
