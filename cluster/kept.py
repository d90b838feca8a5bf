"""What a long comparison has done already, so that it can be interrupted and added to.

A figure is made once for the settings that it was made with; a folder belongs to one training.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.config import dump, load_kept
from cluster.output import plain, write_text

TRAINING = "training.yaml"


def claim(folder: Path, training: object) -> None:
    """Say which training a folder is of; ValueError when it is of another one."""
    path = folder / TRAINING
    if path.exists() and load_kept(type(training), path.read_text()) != training:
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
    """Read the figures that were made with these settings; None where there are none."""
    if path.exists():
        stored = json.loads(path.read_text())
        if load_kept(type(run), stored["settings"]) == run:
            return stored["figures"]
    return None
