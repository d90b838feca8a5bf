"""A world model on disk: a folder of network and tokenizer, which belong together.

`world_model.safetensors` (float16) and `world_model.json`, beside the tokenizer's two files and the
pose net's, which judges what it shows. A model is rebuilt from its folder alone; see
`drive_envs.network_file` for what is refused.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from drive_envs.network_file import NetworkFileError, read_described, rebuilt, write_network
from world_model.dit import WorldModel, WorldModelConfig
from world_model.pose_net import PoseNet
from world_model.tokenizer import Tokenizer, load_tokenizer, save_tokenizer

SHIPPED = Path(__file__).parent / "data" / "nano"
WEIGHTS, STATE = "world_model.safetensors", "world_model.json"
POSE_NET, POSE_NET_STATE = "pose_net.safetensors", "pose_net.json"


def save_world_model(model: WorldModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write both into a folder, which is made if need be."""
    save_tokenizer(tokenizer, folder)
    write_network(
        folder / WEIGHTS,
        folder / STATE,
        halved(model),
        world_model=asdict(model.config),
        tokenizer=load_tokenizer(folder).digest,
    )


def check_there(folder: Path) -> None:
    """Raise NetworkFileError when a folder holds no world model."""
    if not (folder / STATE).exists():
        raise NetworkFileError(
            f"there is no world model at {folder / STATE}: name the folder that `drive "
            "train-world-model` left as OUTPUT/world_model"
        )


def load_world_model(folder: Path) -> tuple[WorldModel, Tokenizer]:
    """Rebuild both, in evaluation mode and without gradients.

    Raises NetworkFileError, which says which file is wrong, and how.
    """
    check_there(folder)
    (config, of_tokenizer), weights = read_described(
        folder / STATE,
        folder / WEIGHTS,
        "a world model",
        lambda tree: (WorldModelConfig(**tree["world_model"]), tree["tokenizer"]),
    )
    model = rebuilt(partial(WorldModel, config), weights, folder / WEIGHTS, STATE)
    tokenizer = load_tokenizer(folder)
    if tokenizer.digest != of_tokenizer:
        raise NetworkFileError(
            f"{folder}: the tokenizer in it is not the one that the world model was trained with"
        )
    return model.requires_grad_(False), tokenizer


def save_pose_net(network: PoseNet, folder: Path) -> None:
    """Write a pose net beside the model that it judges."""
    write_network(folder / POSE_NET, folder / POSE_NET_STATE, halved(network))


def load_pose_net(folder: Path, config: WorldModelConfig) -> PoseNet:
    """Read the pose net of a model; NetworkFileError when it is missing, damaged or another's."""
    _, weights = read_described(
        folder / POSE_NET_STATE, folder / POSE_NET, "a pose net", lambda tree: None
    )
    make = partial(PoseNet, config.width, config.height)
    return rebuilt(make, weights, folder / POSE_NET, POSE_NET_STATE).requires_grad_(False)


def halved(network: nn.Module) -> dict[str, Tensor]:
    """Return weights as they are kept, float16."""
    return {name: value.half() for name, value in network.state_dict().items()}
