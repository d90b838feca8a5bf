"""Against MetaDrive itself: what a scene shows is seen from where it says."""

import pytest
import torch

from cluster.metadrive_scenes import metadrive_scenes
from drive_envs.image_metrics import psnr
from world_model.autoencoder import AutoencoderConfig
from world_model.dit import WorldModelConfig
from world_model.evaluation import EvaluationConfig, true_frames
from world_model.tokenizer import Tokenizer


@pytest.mark.slow
def test_displaced_drives_are_drawn_from_beside_the_path():
    torch.manual_seed(0)
    config = AutoencoderConfig(latent_channels=4, channels=(16, 16, 16), num_blocks=1)
    tokenizer = Tokenizer(config)
    evaluation = EvaluationConfig(num_frames=4, report_frames=(4,), commanded=(0.5,))
    model = WorldModelConfig(width=64, height=32, latent_channels=4, num_history=2)
    (scene,) = metadrive_scenes(1, tokenizer.eval(), evaluation, model)
    assert scene.first == 3
    assert scene.drive.latents.shape[:2] == (5, 3 + 4 + 5)
    recorded, left = true_frames([scene], 0, 4)[0], true_frames([scene], 3, 4)[0]
    assert recorded.float().std() > 10
    wide = psnr(left[:, 1], recorded[:, 1]).mean()
    assert 10 < wide < 30  # a metre to the side is another picture
    # An excursion begins on the path, and its first context frames are the recorded ones.
    torch.testing.assert_close(scene.images[1][:3], scene.images[0][:3])
