"""What is good driving, as a number: staying where the person was, smoothly.

    r = 1 / (1 + (e / s_e)^2 + (psi / s_psi)^2 + (j / s_j)^2 + (l / s_l)^2)

of the lateral offset e (m), the heading error psi (rad), the lateral jerk j (m/s^3) of the
commands, and the metres l that the car is ahead of the recorded one at the time. It lies in (0, 1],
and is 1 only for a car on the path that steers evenly; its tails are heavy, so that two metres off
is still better than three. A scene that is left, and one that is over, earns 0. The paper has no
reward: its form and scales are decided here.
"""

from dataclasses import dataclass
from math import radians

from jaxtyping import Float
from torch import Tensor

Scenes = Float[Tensor, " batch"]


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """The error of each kind that alone halves the reward: m, rad, m/s^3, m."""

    lateral: float = 0.5
    heading: float = radians(6)
    jerk: float = 5.0
    ahead: float = 4.0

    def __post_init__(self) -> None:
        for name in ("lateral", "heading", "jerk", "ahead"):
            if not getattr(self, name) > 0:
                raise ValueError(f"reward.{name} is {getattr(self, name)}; it must be positive")


def reward(
    lateral: Scenes, heading: Scenes, jerk: Scenes, ahead: Scenes, config: RewardConfig
) -> Scenes:
    """Evaluate r (see the module) for a batch."""
    cost = (lateral / config.lateral) ** 2 + (heading / config.heading) ** 2
    return 1 / (1 + cost + (jerk / config.jerk) ** 2 + (ahead / config.ahead) ** 2)
