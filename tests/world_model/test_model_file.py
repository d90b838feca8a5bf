import json

import pytest
import torch

from drive_envs.network_file import NetworkFileError
from tests.world_model.conftest import CONFIG
from world_model.autoencoder import AutoencoderConfig
from world_model.dit import WorldModel
from world_model.model_file import load_world_model, save_world_model
from world_model.tokenizer import Tokenizer, save_tokenizer


@pytest.fixture
def folder(tmp_path, model):
    torch.manual_seed(1)
    save_world_model(model, make_tokenizer(), tmp_path / "model")
    return tmp_path / "model"


def make_tokenizer():
    config = AutoencoderConfig(latent_channels=4, channels=(16, 16, 16), num_blocks=1)
    return Tokenizer(config).eval()


def test_a_model_comes_back_with_its_tokenizer(folder, model):
    loaded, tokenizer = load_world_model(folder)
    assert loaded.config == CONFIG
    assert tokenizer.latent_channels == 4
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=2e-3, rtol=1e-3)
    assert not any(value.requires_grad for value in loaded.parameters())


def test_what_does_not_belong_together_is_refused(folder):
    torch.manual_seed(2)
    save_tokenizer(make_tokenizer(), folder)
    with pytest.raises(NetworkFileError, match="tokenizer in it is not the one"):
        load_world_model(folder)


def test_damage_is_named(folder, tmp_path):
    weights, state = folder / "world_model.safetensors", folder / "world_model.json"
    content, text = weights.read_bytes(), state.read_text()
    weights.write_bytes(content[:-1] + b"x")
    with pytest.raises(NetworkFileError, match="is damaged"):
        load_world_model(folder)
    weights.write_bytes(content)
    tree = json.loads(text)
    state.write_text(json.dumps(tree | {"world_model": tree["world_model"] | {"size": "pico"}}))
    with pytest.raises(NetworkFileError, match="of another network than"):
        load_world_model(folder)
    state.write_text(json.dumps(tree | {"world_model": tree["world_model"] | {"size": "huge"}}))
    with pytest.raises(NetworkFileError):
        load_world_model(folder)
    state.write_text("{}")
    with pytest.raises(NetworkFileError, match="does not describe a world model"):
        load_world_model(folder)
    with pytest.raises(NetworkFileError, match="there is no world model at"):
        load_world_model(tmp_path / "nowhere")


def test_weights_that_are_not_numbers(tmp_path):
    broken = WorldModel(CONFIG)
    with torch.no_grad():
        broken.space[0, 0] = float("nan")
    save_world_model(broken, make_tokenizer(), tmp_path)
    with pytest.raises(NetworkFileError, match="not finite"):
        load_world_model(tmp_path)
