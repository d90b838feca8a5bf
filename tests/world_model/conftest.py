import pytest
import torch

from world_model.dit import WorldModel, WorldModelConfig
from world_model.windows import Window

NUM_HISTORY, NUM_ANCHORS = 3, 2
CONFIG = WorldModelConfig(
    size="femto",
    width=32,
    height=16,
    latent_channels=4,
    num_history=NUM_HISTORY,
    num_anchors=NUM_ANCHORS,
)


@pytest.fixture
def model():
    """A small network that has forgotten its zero initialisation, so that everything matters."""
    torch.manual_seed(0)
    model = WorldModel(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5 / parameter.shape[-1] ** 0.5)
    return model.eval()


def make_window(batch=2, num_frames=7, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    def drive(num):
        steps = torch.tensor([1.0, 0.0, 0.0]) + torch.tensor([0.2, 0.05, 0.02]) * random(
            batch, num, 3
        )
        return steps.double().cumsum(1)

    shape = CONFIG.latent_shape
    poses = drive(num_frames + NUM_ANCHORS + 4)
    return Window(
        frames=random(batch, num_frames, *shape),
        poses=poses[:, :num_frames],
        plan=random(batch, num_frames, 33, 15),
        plan_valid=torch.rand((batch, num_frames, 33), generator=generator) < 0.8,
        anchors=random(batch, NUM_ANCHORS, *shape),
        anchor_poses=poses[:, -NUM_ANCHORS:],
        wait=torch.arange(batch) % 4 + 1,
    )


def without_anchors(window):
    return window._replace(anchors=window.anchors[:, :0], anchor_poses=window.anchor_poses[:, :0])


@pytest.fixture
def window():
    return make_window()
