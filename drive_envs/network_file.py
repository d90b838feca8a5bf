"""A network on disk: a safetensors file of its weights beside a JSON file that describes it.

The JSON holds {"sha256": {file: digest}, ...}; what else is in it is the affair of who wrote it.
Nothing is pickled and nothing is believed: a digest, a name, a shape or a number that is not as it
should be is refused, before any memory is spent on the network.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

Tensors = Mapping[str, Tensor]
Network = TypeVar("Network", bound=nn.Module)


class NetworkFileError(ValueError):
    """A network's folder is incomplete, damaged or of another network; the message says which."""


def write_network(weights_file: Path, state_file: Path, weights: Tensors, **described: Any) -> None:
    """Write weights, and beside them what describes them, into a folder made if need be."""
    weights_file.parent.mkdir(parents=True, exist_ok=True)
    content = save({name: value.contiguous() for name, value in weights.items()})
    digests = {weights_file.name: hashlib.sha256(content).hexdigest()}
    weights_file.write_bytes(content)
    state_file.write_text(json.dumps({"sha256": digests, **described}, indent=1))


def read_described(
    state_file: Path, weights_file: Path, what: str, described: Callable[[Any], Any]
) -> tuple[Any, Tensors]:
    """Read what `described` makes of the JSON, and the weights, checked against their digest.

    `what` it should describe, as in "a policy"; `described` raises ValueError, KeyError or
    TypeError when it does not.
    """
    try:
        tree = json.loads(state_file.read_bytes())
    except OSError as error:
        raise NetworkFileError(f"{state_file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise NetworkFileError(f"{state_file} does not describe {what}: {error}") from error
    try:
        digest, found = tree["sha256"][weights_file.name], described(tree)
    except (ValueError, KeyError, TypeError) as error:
        raise NetworkFileError(f"{state_file} does not describe {what}: {error!r}") from error
    return found, read_weights(weights_file, digest, state_file.name)


def read_weights(path: Path, digest: str, state_name: str) -> Tensors:
    """Read weights that have a digest."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NetworkFileError(f"{path} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise NetworkFileError(f"{path} is damaged: its digest is not the one in {state_name}")
    try:
        return load(content)
    except SafetensorError as error:
        raise NetworkFileError(f"{path} is not a safetensors file: {error}") from error


def rebuilt(make: Callable[[], Network], weights: Tensors, path: Path, state_name: str) -> Network:
    """Make a network and give it weights, in its own precision; ready to be used, not trained."""
    try:
        with torch.device("meta"):
            empty = make().state_dict()
    except (RuntimeError, KeyError) as error:
        raise NetworkFileError(f"{path}: no network can be made of its sizes: {error}") from error
    check_weights(weights, empty, path, state_name)
    network = make()
    network.load_state_dict({name: value.to(empty[name].dtype) for name, value in weights.items()})
    return network.eval()


def check_weights(weights: Tensors, expected: Tensors, path: Path, state_name: str) -> None:
    """Compare names and shapes with those of the network, and look for what is not a number."""
    shapes, found = (
        {name: value.shape for name, value in of.items()} for of in (expected, weights)
    )
    if different := sorted(
        name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name)
    ):
        raise NetworkFileError(
            f"{path} is of another network than {state_name} says: {len(different)} weights are "
            f"missing, unknown or of another shape, the first is '{different[0]}'"
        )
    if not all(value.isfinite().all() for value in weights.values()):
        raise NetworkFileError(f"{path} holds weights that are not finite numbers")
