"""A policy on disk: `policy.safetensors` beside `state.json`, which describes it.

state.json holds {"sha256": {file: digest}, "state": {"policy": fields of `PolicyConfig`}}, among
other things where the folder is a whole checkpoint of a run. So a policy is rebuilt from its folder
alone; see `drive_envs.network_file` for what is refused.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

from drive_actors.encoder import Convolutional
from drive_actors.fastvit import FastVit
from drive_actors.policy import EncoderKind, Policy, PolicyConfig
from drive_envs.network_file import read_described, rebuilt, write_network

WEIGHTS, STATE = "policy.safetensors", "state.json"


def save_policy(policy: Policy, folder: Path) -> None:
    """Write a policy into a folder, which is made if need be."""
    state = {"policy": asdict(policy.config)}
    write_network(folder / WEIGHTS, folder / STATE, policy.state_dict(), state=state)


def load_policy(folder: Path) -> Policy:
    """Rebuild a policy, in evaluation mode; NetworkFileError says which file is wrong, and how."""
    config, weights = read_described(
        folder / STATE,
        folder / WEIGHTS,
        "a policy",
        lambda tree: config_from_json(tree["state"]["policy"]),
    )
    return rebuilt(partial(Policy, config), weights, folder / WEIGHTS, STATE)


def config_from_json(tree: Mapping[str, Any]) -> PolicyConfig:
    """Turn what JSON holds into a `PolicyConfig`; ValueError or TypeError when it is none."""
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in tree.items()
    }
    encoder = encoder_from_json(given.pop("encoder", {}))
    defaults = {field.name: field.default for field in fields(PolicyConfig)}
    del defaults["encoder"]
    if given.keys() != defaults.keys():
        different = sorted(given.keys() ^ defaults.keys())
        raise ValueError(f"keys {different} are unknown or missing")
    for key, value in given.items():
        is_none = key == "bottleneck_bits" and value is None
        numbers = value if isinstance(value, tuple) else (value,)
        if not is_none and (
            type(value) is not type(defaults[key])
            or not all(isinstance(number, int | float) for number in numbers)
        ):
            raise ValueError(f"{key} is {value!r}")
    return PolicyConfig(**given, encoder=encoder)


def encoder_from_json(tree: Mapping[str, Any]) -> EncoderKind:
    """Turn what JSON holds into an encoder's settings; policies of old have no kind."""
    match tree.get("kind", "convolutional"):
        case "convolutional":
            return Convolutional(**tree)
        case "fastvit":
            return FastVit(**tree)
        case kind:
            raise ValueError(f"encoder.kind is {kind!r}; it must be convolutional or fastvit")
