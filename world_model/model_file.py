"""A world model on disk: a folder of network and tokenizer, which belong together.

`world_model.safetensors` (float16) and `world_model.json`, beside the tokenizer's two files and
`pose_net.safetensors`, which judges what it shows. The
JSON holds digest and sizes, so that a model is rebuilt from its folder alone. Nothing is pickled,
and nothing is believed: a digest, a name or a shape that is not as it should be is refused.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from world_model.dit import WorldModel, WorldModelConfig
from world_model.pose_net import PoseNet
from world_model.tokenizer import Tokenizer, load_tokenizer, save_tokenizer

WEIGHTS, STATE = "world_model.safetensors", "world_model.json"
POSE_NET = "pose_net.safetensors"


class WorldModelError(ValueError):
    """A world model's folder is incomplete, damaged, or of another network or tokenizer."""


def save_world_model(model: WorldModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write both into a folder, which is made if need be."""
    save_tokenizer(tokenizer, folder)
    weights = {name: value.contiguous().half() for name, value in model.state_dict().items()}
    content = save(weights)
    state = {
        "sha256": {WEIGHTS: hashlib.sha256(content).hexdigest()},
        "world_model": asdict(model.config),
        "tokenizer": load_tokenizer(folder).digest,
    }
    (folder / WEIGHTS).write_bytes(content)
    (folder / STATE).write_text(json.dumps(state, indent=1))


def load_world_model(folder: Path) -> tuple[WorldModel, Tokenizer]:
    """Rebuild both, in evaluation mode and without gradients.

    Raises WorldModelError or TokenizerError, which say which file is wrong, and how.
    """
    try:
        state = json.loads((folder / STATE).read_bytes())
        config = WorldModelConfig(**state["world_model"])
        digest, of_tokenizer = state["sha256"][WEIGHTS], state["tokenizer"]
        content = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise WorldModelError(f"{error.filename} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise WorldModelError(
            f"{folder / STATE} does not describe a world model: {error}"
        ) from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise WorldModelError(f"{folder / WEIGHTS} is damaged: its digest is not {STATE}'s")
    try:
        weights = load(content)
    except SafetensorError as error:
        raise WorldModelError(f"{folder / WEIGHTS} is not a safetensors file: {error}") from error
    check_weights(folder / WEIGHTS, weights, config)
    tokenizer = load_tokenizer(folder)
    if tokenizer.digest != of_tokenizer:
        raise WorldModelError(
            f"{folder}: the tokenizer in it is not the one that the world model was trained with"
        )
    model = WorldModel(config)
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    return model.eval().requires_grad_(False), tokenizer


def save_pose_net(network: PoseNet, folder: Path) -> None:
    """Write a pose net beside the model that it judges, as float16."""
    weights = {name: value.contiguous().half() for name, value in network.state_dict().items()}
    (folder / POSE_NET).write_bytes(save(weights))


def load_pose_net(folder: Path, config: WorldModelConfig) -> PoseNet:
    """Read the pose net of a model; WorldModelError when it is not there, or another network."""
    network = PoseNet(config.width, config.height)
    try:
        weights = load((folder / POSE_NET).read_bytes())
        network.load_state_dict({name: value.float() for name, value in weights.items()})
    except OSError as error:
        raise WorldModelError(
            f"{folder / POSE_NET} cannot be read: {error.strerror}; `drive train-world-model` "
            "makes it"
        ) from error
    except (SafetensorError, RuntimeError) as error:
        raise WorldModelError(f"{folder / POSE_NET} is damaged or of another network") from error
    return network.eval().requires_grad_(False)


def check_weights(path: Path, weights: dict[str, Tensor], config: WorldModelConfig) -> None:
    """Compare names and shapes with those of the network, before any memory is spent on it."""
    try:
        with torch.device("meta"):
            empty = WorldModel(config).state_dict()
    except (RuntimeError, KeyError) as error:
        raise WorldModelError(f"{path}: no network can be made of its sizes: {error}") from error
    expected, found = ({name: value.shape for name, value in of.items()} for of in (empty, weights))
    if different := sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    ):
        raise WorldModelError(
            f"{path} is of another network than {STATE} says: {len(different)} weights are "
            f"missing, unknown or of another shape, the first is '{different[0]}'"
        )
    if not all(value.isfinite().all() for value in weights.values()):
        raise WorldModelError(f"{path} holds weights that are not finite numbers")
