import numpy as np
import pytest
import torch

from drive_envs.protocol import OpenSession, StepSession
from world_model.autoencoder import Autoencoder, AutoencoderConfig
from world_model.dit import WorldModel, WorldModelConfig
from world_model.engine import Engine, EngineConfig
from world_model.sampler import SamplerConfig
from world_model.tokenizer import Tokenizer
from world_model.windows import Window

NUM_HISTORY, NUM_ANCHORS = 3, 2
CONFIG = WorldModelConfig(
    size="femto",
    width=32,
    height=16,
    latent_channels=4,
    num_history=NUM_HISTORY,
    num_anchors=NUM_ANCHORS,
    num_detail=8,
)
NUM_CONTEXT = NUM_HISTORY + 1


def random_model(seed):
    """Make a small network without its zero initialisation, so that everything matters."""
    torch.manual_seed(seed)
    model = WorldModel(CONFIG)
    for parameter in model.parameters():
        num_in = parameter[0].numel() if parameter.ndim > 1 else len(parameter)
        torch.nn.init.normal_(parameter, std=0.5 / num_in**0.5)
    return model.eval()


@pytest.fixture
def model():
    return random_model(0)


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
    frames = random(batch, num_frames, *shape)
    return Window(
        frames=frames,
        shown=frames,
        moved=random(batch, num_frames, *shape),
        poses=poses[:, :num_frames],
        plan=random(batch, num_frames, 33, 15),
        plan_valid=torch.rand((batch, num_frames, 33), generator=generator) < 0.8,
        anchors=random(batch, NUM_ANCHORS, *shape),
        anchors_moved=random(batch, NUM_ANCHORS, *shape),
        anchor_poses=poses[:, -NUM_ANCHORS:],
        wait=torch.arange(batch) % 4 + 1,
    )


def without_anchors(window):
    names = ("anchors", "anchors_moved", "anchor_poses")
    return window._replace(**{name: getattr(window, name)[:, :0] for name in names})


@pytest.fixture
def window():
    return make_window()


def random_tokenizer():
    """Make a tokenizer that knows four patterns, and gives mixtures of these back as they were."""
    torch.manual_seed(1)
    config = AutoencoderConfig(latent_channels=4, channels=(16, 16, 16), num_blocks=1)
    tokenizer = Tokenizer(config)
    patterns, shares = torch.randn(4, 6, 8, 8).sign(), 0.12 * torch.randn(64, 2, 4, 4)
    patches = torch.einsum("frck,kdpq->fdrpcq", shares, patterns).reshape(64, 2, 3, 16, 32)
    assert isinstance(tokenizer.coder, Autoencoder)
    tokenizer.coder.start_linear(patches)
    return tokenizer.eval().requires_grad_(False)


@pytest.fixture
def tokenizer():
    return random_tokenizer()


@pytest.fixture
def make_engine(model, tokenizer):
    def make(capacity=8, **options):
        sampler = SamplerConfig(num_steps=2, precision="fp32")
        return Engine(model, tokenizer, sampler, EngineConfig(capacity=capacity, **options))

    return make


def opening(name, num_scenes=2, seed=0, **options):
    rng = np.random.default_rng(seed)
    steps = rng.normal([1.0, 0.0, 0.0], [0.2, 0.05, 0.02], (num_scenes, 20, 3)).cumsum(1)
    picture = (num_scenes, 8, 2, 3, CONFIG.height, CONFIG.width)
    images = rng.integers(0, 256, picture, np.uint8)
    return OpenSession(
        session=name,
        context=images[:, :NUM_CONTEXT],
        context_poses=steps[:, :NUM_CONTEXT],
        anchors=images[:, NUM_CONTEXT : NUM_CONTEXT + CONFIG.num_anchors],
        anchor_poses=steps[:, 15 : 15 + CONFIG.num_anchors],
        wait=np.full(num_scenes, 12),
        seed=rng.integers(0, 1000, num_scenes),
        **options,
    )


def step_of(request, frame, scenes=None):
    scenes = np.arange(request.num_scenes) if scenes is None else np.array(scenes)
    poses = request.context_poses[scenes, -1] + frame * np.array([1.0, 0.1, 0.01])
    return StepSession(session=request.session, frame=frame, scenes=scenes, poses=poses)


def drive(engine, request, num_frames=5):
    engine.open(request)
    return [engine.step([step_of(request, frame + 1)])[0] for frame in range(num_frames)]


def assert_alike(one, other):
    np.testing.assert_allclose(one.plan, other.plan, atol=1e-3)
    assert np.abs(one.images.astype(int) - other.images).max() <= 1


class Now:
    """An answer that is there, or an error."""

    def __init__(self, make):
        self.make = make

    def result(self):
        answer = self.make()
        if isinstance(answer, Exception):
            raise answer
        for array in (answer.images, answer.plan):
            if array is not None:
                array.flags.writeable = False  # as what Ray brings
        return answer


class InProcess:
    """A connection to an engine; `trouble` maps the number of a step to what happens to it."""

    def __init__(self, engine):
        self.engine, self.trouble, self.num_steps = engine, {}, 0

    def open(self, request):
        return Now(lambda: self.engine.open(request))

    def step(self, request):
        self.num_steps += 1
        trouble = self.trouble.get(self.num_steps)
        if trouble == "forgotten":
            self.engine.close(request.session)
        if trouble == "answer lost":
            self.engine.step([request])
            return Now(lambda: TimeoutError("too slow"))
        return Now(lambda: self.engine.step([request])[0])

    def close(self, session):
        self.engine.close(session)
