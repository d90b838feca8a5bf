import hashlib
import json

import pytest
import torch
from safetensors.torch import save

from drive_actors.encoder import Convolutional
from drive_actors.fastvit import FastVit
from drive_actors.policy import PolicyConfig, fresh_policy
from drive_actors.policy_file import STATE, WEIGHTS, load_policy, save_policy
from drive_envs.network_file import NetworkFileError


@pytest.fixture
def folder(tmp_path, tiny_policy):
    save_policy(tiny_policy, tmp_path / "best")
    return tmp_path / "best"


def edit(folder, change):
    tree = json.loads((folder / STATE).read_text())
    change(tree)
    (folder / STATE).write_text(json.dumps(tree))


def replace_weights(folder, content):
    (folder / WEIGHTS).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    edit(folder, lambda tree: tree["sha256"].update({WEIGHTS: digest}))


def test_round_trip(folder, tiny_policy):
    loaded = load_policy(folder)
    assert loaded.config == tiny_policy.config
    assert not loaded.training
    for name, value in tiny_policy.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    history, speed = torch.randn(2, 10, loaded.config.model_dim), torch.rand(2, 1)
    assert torch.equal(loaded(history, speed).plan.mean, tiny_policy(history, speed).plan.mean)


def test_round_trip_with_fastvit(tmp_path):
    encoder = FastVit(stride=8, num_channels=2)
    config = PolicyConfig(width=64, height=32, num_features=16, model_dim=16, encoder=encoder)
    made = fresh_policy(config)
    save_policy(made, tmp_path)
    loaded = load_policy(tmp_path)
    assert loaded.config == config
    image = torch.randint(0, 256, (2, 3, 32, 64), dtype=torch.uint8)
    frames = {"narrow": image, "wide": image.flip(-1)}
    assert torch.equal(loaded.features(frames), made.features(frames))


def test_a_policy_from_before_there_was_a_choice_is_convolutional(folder, tiny_policy):
    edit(folder, lambda tree: tree["state"]["policy"].pop("encoder"))
    assert load_policy(folder).config == tiny_policy.config
    assert tiny_policy.config.encoder == Convolutional()


@pytest.mark.parametrize("name", [WEIGHTS, STATE])
def test_a_missing_or_torn_file_is_named(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(NetworkFileError, match=name):
        load_policy(folder)
    (folder / name).unlink()
    with pytest.raises(NetworkFileError, match=f"{name} cannot be read"):
        load_policy(folder)


def test_a_pickle_is_not_opened(folder):
    replace_weights(folder, b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(NetworkFileError, match="not a safetensors file"):
        load_policy(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_dim", 18),
        ("num_heads", "2"),
        ("channels", [4, 8, "8"]),
        ("surprise", 1),
        ("encoder", {"kind": "resnet"}),
        ("encoder", {"kind": "fastvit", "model": 8}),
        ("encoder", {"kind": "fastvit", "stride": 5}),
        ("encoder", {"kind": "convolutional", "surprise": 1}),
    ],
)
def test_an_impossible_configuration_is_named(folder, key, value):
    edit(folder, lambda tree: tree["state"]["policy"].update({key: value}))
    with pytest.raises(NetworkFileError, match="policy"):
        load_policy(folder)


def test_a_configuration_of_another_network_costs_no_memory(folder):
    edit(folder, lambda tree: tree["state"]["policy"].update({"num_features": 10**8}))
    with pytest.raises(NetworkFileError, match="another network"):
        load_policy(folder)


def test_weights_that_are_not_finite_are_refused(folder, tiny_policy):
    weights = tiny_policy.state_dict()
    weights["time_embedding"] = weights["time_embedding"] * torch.nan
    replace_weights(folder, save(weights))
    with pytest.raises(NetworkFileError, match="not finite"):
        load_policy(folder)
