"""What a long comparison has done already, so that it can be interrupted and added to.

A figure is made once for the settings that it was made with; a folder belongs to one training.
"""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from cluster.config import Config, dump, load, load_text
from cluster.output import plain, write_text
from cluster.train_policy import TrainPolicyRun

TRAINING = "training.yaml"


def claim(folder: Path, training: TrainPolicyRun) -> None:
    """Say which training a folder is of; ValueError when it is of another one."""
    path = folder / TRAINING
    if path.exists() and load(TrainPolicyRun, path) != training:
        raise ValueError(f"{path} is of a training with other settings: choose another output")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, dump(training))


def kept(path: Path, run: object, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Read the figures that were made with these settings, or make them and write them down."""
    if (figures := found(path, run)) is not None:
        return figures
    figures = plain(make())
    write_text(path, json.dumps({"settings": dump(run), "figures": figures}, indent=1) + "\n")
    return figures


def found(path: Path, run: object) -> dict[str, Any] | None:
    """Read the figures that were made with these settings; None where there are none.

    A setting that there was not yet when they were made counts as having had its default: what is
    new has to be off unless it is asked for.
    """
    if path.exists():
        stored = json.loads(path.read_text())
        if settings(type(run), stored["settings"]) == run:
            return stored["figures"]
    return None


@lru_cache(maxsize=1000)
def settings(schema: type[Config], text: str) -> Config | None:
    """Read settings as they were written down; None where they are not of this schema any more."""
    try:
        return load_text(schema, text)
    except ValueError:
        return None
