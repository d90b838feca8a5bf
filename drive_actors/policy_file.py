"""A policy on disk: `policy.safetensors` beside `state.json`, which describes it.

state.json holds {"sha256": {file: digest}, "state": {"policy": fields of `PolicyConfig`}}, among
other things where the folder is a whole checkpoint of a run. So a policy is rebuilt from its folder
alone. Nothing is pickled and nothing is believed: a digest, a field, a name or a shape that is not
as it should be is refused.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from drive_actors.policy import Policy, PolicyConfig

WEIGHTS, STATE = "policy.safetensors", "state.json"


class PolicyFileError(ValueError):
    """A policy's folder is incomplete, damaged, or of another network."""


def save_policy(policy: Policy, folder: Path) -> None:
    """Write a policy into a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    content = save({name: value.contiguous() for name, value in policy.state_dict().items()})
    digests = {WEIGHTS: hashlib.sha256(content).hexdigest()}
    state = {"sha256": digests, "state": {"policy": asdict(policy.config)}}
    (folder / WEIGHTS).write_bytes(content)
    (folder / STATE).write_text(json.dumps(state, indent=1))


def load_policy(folder: Path) -> Policy:
    """Rebuild a policy, in evaluation mode; PolicyFileError says which file is wrong, and how."""
    config, digest = read_state(folder / STATE)
    path = folder / WEIGHTS
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PolicyFileError(f"{path} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise PolicyFileError(f"{path} is damaged: its digest is not the one in {STATE}")
    try:
        weights = load(content)
    except SafetensorError as error:
        raise PolicyFileError(f"{path} is not a safetensors file: {error}") from error
    check_weights(path, weights, config)
    policy = Policy(config)
    policy.load_state_dict(weights)
    return policy.eval()


def read_state(path: Path) -> tuple[PolicyConfig, str]:
    """Read the policy's configuration and its weights' digest from state.json."""
    try:
        tree = json.loads(path.read_bytes())
        digest, policy = tree["sha256"][WEIGHTS], tree["state"]["policy"]
    except OSError as error:
        raise PolicyFileError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PolicyFileError(
            f"{path} does not describe a policy: it needs sha256.{WEIGHTS} and state.policy"
        ) from error
    try:
        return config_from_json(policy), digest
    except (ValueError, TypeError) as error:
        raise PolicyFileError(f"{path}: state.policy is not a policy's: {error}") from error


def config_from_json(tree: Mapping[str, Any]) -> PolicyConfig:
    """Turn what JSON holds into a `PolicyConfig`; ValueError or TypeError when it is none."""
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in tree.items()
    }
    defaults = {field.name: field.default for field in fields(PolicyConfig)}
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
    return PolicyConfig(**given)


def check_weights(path: Path, weights: Mapping[str, Tensor], config: PolicyConfig) -> None:
    """Compare names and shapes with those of the network, before any memory is spent on it."""
    try:
        with torch.device("meta"):
            expected = {name: value.shape for name, value in Policy(config).state_dict().items()}
    except RuntimeError as error:
        raise PolicyFileError(f"{path}: no network can be made of its sizes: {error}") from error
    found = {name: value.shape for name, value in weights.items()}
    if different := sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    ):
        raise PolicyFileError(
            f"{path} is of another network than {STATE} says: {len(different)} weights are "
            f"missing, unknown or of another shape, the first is '{different[0]}'"
        )
    if not all(value.isfinite().all() for value in weights.values()):
        raise PolicyFileError(f"{path} holds weights that are not finite numbers")
