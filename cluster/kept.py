"""What a long comparison has done already, so that it can be interrupted and added to.

A figure is made once for the settings that it was made with; a folder belongs to one training;
arrays that take long to draw are files whose names say what they depend on.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from cluster.config import dump, load_kept
from cluster.output import plain, write_text
from cluster.progress import progress

TRAINING = "training.yaml"

log = logging.getLogger(__name__)


def claim(folder: Path, training: object) -> None:
    """Say which training a folder is of; ValueError when it is of another one."""
    path = folder / TRAINING
    if path.exists() and load_kept(type(training), path.read_text()) != training:
        raise ValueError(f"{path} is of a training with other settings: choose another output")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, dump(training))


def refuse_other(folder: Path, before: str, run: object, names: Sequence[str]) -> None:
    """Raise ValueError where a checkpoint's run, `before`, has other values than `run`.

    names: of the settings that may not change while a run goes on.
    """
    then = load_kept(type(run), before)
    if then is None:
        log.warning("%s: settings of another version, it is not known if they are equal", folder)
    elif other := [name for name in names if getattr(then, name) != getattr(run, name)]:
        raise ValueError(
            f"the checkpoint in {folder} is of a run with other settings ({', '.join(other)}): "
            "choose another output, or remove this one to begin again"
        )


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


def digest(known: Mapping[str, Any]) -> str:
    """Return a short name made of settings, for what depends on them."""
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]


def kept_arrays(
    files: Sequence[Path],
    title: str,
    making: Callable[[], AbstractContextManager[Callable[[int], Mapping[str, np.ndarray]]]],
) -> list[dict[str, np.ndarray]]:
    """Read the arrays in some files, after making those that are missing.

    A file is whole or not there. making: opened once, if anything is missing; what it yields makes
    the arrays of one number.
    """
    missing = [number for number, file in enumerate(files) if not file.exists()]
    if missing:
        with (
            making() as make,
            progress(title, len(files), done=len(files) - len(missing)) as meter,
        ):
            for number in missing:
                files[number].parent.mkdir(parents=True, exist_ok=True)
                part = files[number].with_suffix(".part")
                with part.open("wb") as file:
                    np.savez_compressed(file, allow_pickle=False, **make(number))
                part.replace(files[number])
                meter.advance()
    loaded = []
    for path in files:
        with np.load(path, allow_pickle=False) as stored:
            loaded.append(dict(stored))
    return loaded
