"""One process of a score: a world of its own, any driver, one scenario at a time."""

from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from drive_actors.drivers import Driver, PolicyDriver, StraightDriver, TeacherDriver
from drive_actors.policy_file import load_policy
from drive_actors.scoring import Drive, Noise, Result, drive, judge
from drive_envs.allocator import keep_freed_memory
from drive_envs.blank import Blank
from drive_envs.conditions import CLEAR, Conditions
from drive_envs.metadrive_world import MetaDrive
from drive_envs.scenarios import Scenario
from drive_envs.vehicle import preset
from drive_envs.world import World

WhenToDraw = Literal["never", "failed", "always"]


class Scored(NamedTuple):
    """A result, and the drive with its views where it is worth a video."""

    result: Result
    filmed: Drive | None


class Scorer:
    """Scores scenario after scenario in its own world, which is made when it is first needed.

    A driver is `teacher`, `straight` or the folder of a policy, whose images are `width` x
    `height`; the first two also drive in the dark (`is_rendered=False`).
    """

    def __init__(self, width: int, height: int, noise: Noise, *, is_rendered: bool = True) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        self.width, self.height, self.is_rendered = width, height, is_rendered
        self.noise: Noise = noise
        self.world: World | None = None

    def score(
        self, driver: str, scenario: Scenario, film: WhenToDraw, conditions: Conditions = CLEAR
    ) -> Scored:
        """Drive and judge one scenario."""
        if self.world is None:
            make = MetaDrive if self.is_rendered else Blank
            self.world = make(self.width, self.height)
        if isinstance(self.world, MetaDrive):
            self.world.conditions = conditions
        car = conditions.vehicle(preset(self.noise))
        driven = drive(driver_of(driver), scenario, self.world, car, with_views=film != "never")
        result = judge(scenario, driven)
        is_filmed = film == "always" or (film == "failed" and not result.passed)
        return Scored(result=result, filmed=driven if is_filmed else None)


@lru_cache(maxsize=8)
def driver_of(name: str) -> Driver:
    """Make the driver of this name; NetworkFileError when it is a policy that cannot be read."""
    match name:
        case "teacher":
            return TeacherDriver()
        case "straight":
            return StraightDriver()
        case _:
            return PolicyDriver(load_policy(Path(name)))
