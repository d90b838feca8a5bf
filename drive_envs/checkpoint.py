"""Checkpoints that are whole or are not there: step_000123/{*.safetensors, state.json, run.yaml}.

A checkpoint is written beside its place, every file fsynced, and renamed into it, so that a killed
process leaves at most a `.writing` folder that nobody reads. `state.json` holds the SHA-256 of all
other files: one that a failing disk has torn is refused by name, and `latest_checkpoint` goes back
to the one before. Nothing is pickled. The module does not know what the tensors mean.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

log = logging.getLogger(__name__)

STATE, RUN = "state.json", "run.yaml"
REMOVING = ".removing"
NAME = re.compile(r"step_(\d+)")


class CheckpointError(ValueError):
    """A checkpoint is missing, incomplete or damaged."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a run needs to go on.

    step: gradient steps taken. tensors: by file (without suffix), then by name. state: counters and
    generator states, anything that JSON holds. run: the run as YAML.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]
    run: str


def write_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int = 3) -> Path:
    """Write `folder`/step_NNNNNN and remove all but the `keep` newest; return where it is.

    OSError, with what is there already left whole, when the disk is full.
    """
    place = folder / f"step_{checkpoint.step:06d}"
    aside = folder / f"{place.name}.writing"
    for torn in (*folder.glob(f"*{REMOVING}"), *folder.glob(aside.name)):
        shutil.rmtree(torn)
    aside.mkdir(parents=True)
    contents = {
        f"{name}.safetensors": save({key: value.contiguous() for key, value in tensors.items()})
        for name, tensors in checkpoint.tensors.items()
    }
    contents[RUN] = checkpoint.run.encode()
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    state = {"step": checkpoint.step, "sha256": digests, "state": checkpoint.state}
    contents[STATE] = json.dumps(state, indent=1).encode()
    try:
        for name, content in contents.items():
            write_synced(aside / name, content)
    except OSError as error:
        # On a full disk the part that was written would keep the next one from fitting, too.
        shutil.rmtree(aside, ignore_errors=True)
        raise OSError(error.errno, error.strerror, str(aside)) from error
    sync_folder(aside)
    if place.exists():
        remove(place)
    aside.rename(place)
    sync_folder(folder)
    for old in checkpoints(folder)[:-keep]:
        remove(old)
    return place


def remove(place: Path) -> None:
    """Remove a checkpoint; killed in mid-removal, none is left that is not whole."""
    shutil.rmtree(place.rename(place.with_name(place.name + REMOVING)))


def read_checkpoint(place: Path) -> Checkpoint:
    """Read one checkpoint; CheckpointError names the file that is missing or damaged."""
    try:
        state = json.loads((place / STATE).read_bytes())
        contents = {name: (place / Path(name).name).read_bytes() for name in state["sha256"]}
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{error.filename} is missing: {place} is not a whole checkpoint"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{place / STATE} is damaged: use an earlier checkpoint") from error
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != state["sha256"][name]:
            raise CheckpointError(f"{place / name} is damaged: use an earlier checkpoint")
    tensors = {}
    for name, content in contents.items():
        if name.endswith(".safetensors"):
            try:
                tensors[name.removesuffix(".safetensors")] = load(content)
            except SafetensorError as error:
                raise CheckpointError(
                    f"{place / name} is no safetensors file, and nothing else is opened"
                ) from error
    return Checkpoint(
        step=state["step"], tensors=tensors, state=state["state"], run=contents[RUN].decode()
    )


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the newest whole checkpoint, logging each damaged one passed over; None without any."""
    for place in reversed(checkpoints(folder)):
        try:
            return read_checkpoint(place)
        except CheckpointError as error:
            log.warning("skipped a checkpoint: %s", error)
    return None


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, oldest first, whole or not."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def write_synced(path: Path, content: bytes) -> None:
    """Write bytes and wait until they are on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until a folder's entries are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
