"""On pictures that are made here, into which a leak is planted: nothing is drawn."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.config import load
from cluster.jobs import RUNS
from cluster.leak_scenes import KINDS, LeakScenesConfig
from cluster.probe_policy import ProbePolicyRun, features_of, received, run
from cluster.train_policy import TrainPolicyRun
from drive_actors.policy import Policy, PolicyConfig
from drive_actors.policy_file import load_policy, save_policy
from drive_actors.probe import ProbeConfig

PAIRS = LeakScenesConfig(num_roads=20, pairs_per_road=12, width=32, height=16)
RUN = ProbePolicyRun(
    pairs=PAIRS,
    probe=ProbeConfig(num_folds=2, max_epochs=20, learning_rate=0.01),
    num_looks=2,
    num_resamples=50,
)


def planted(rng):
    """Return one road's pairs: grey, the left half lighter where something is to be told.

    All kinds show in the lower half where the car is in its lane, the warped alone, in the upper
    half, how far it is displaced.
    """
    targets = rng.uniform(-1, 1, (PAIRS.pairs_per_road, 3)) * [1.3, 0.05, 1.0]
    found = {"targets": targets}
    for kind in KINDS:
        image = np.full((len(targets), 3, 16, 32), 128.0)
        image[:, :, 12:, :16] += 100 * targets[:, 2, None, None, None]
        if kind == "warped":
            image[:, :, 8:12, :16] += 70 * targets[:, 0, None, None, None]
        image += rng.normal(0, 2, image.shape)
        found |= {f"{kind}_{c}": image.clip(0, 255).astype(np.uint8) for c in ("narrow", "wide")}
    return found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    parts = folder / PAIRS.folder_name
    parts.mkdir()
    rng = np.random.default_rng(0)
    for number in range(PAIRS.num_roads):
        np.savez_compressed(parts / f"road_{number:04d}.npz", allow_pickle=False, **planted(rng))
    return folder


def tiny_policy(folder, bits: float | None = None):
    torch.manual_seed(0)
    config = PolicyConfig(
        width=32,
        height=16,
        channels=(4, 8, 8),
        num_features=32,
        bottleneck_bits=bits,
        sky=(0.0, 0.0),
        model_dim=16,
        num_heads=2,
        num_hypotheses=2,
    )
    save_policy(Policy(config), folder)
    return folder


@pytest.mark.slow
def test_a_leak_is_told_from_what_every_picture_shows(pictures, tmp_path):
    policies = {
        "open": str(tiny_policy(tmp_path / "open")),
        "narrow": str(tiny_policy(tmp_path / "narrow", bits=0.25)),
    }
    figures = run(replace(RUN, policies=policies, folder=pictures), tmp_path)
    for probe in ("linear", "mlp"):
        told = figures["open"]["lateral"][probe]
        assert told["leak"] > 0.5
        assert told["leak"] == pytest.approx(told["warped"] - told["true"], abs=0.002)
        assert abs(told["leak_aged"]) < 0.2
        assert told["known"] > 0.5
        assert told["known_aged"] < 0.1
        assert told["true"] < 0.1
        assert figures["open"]["heading"][probe]["warped"] < 0.1
        control = figures["open"]["lane"][probe]
        assert control["true"] > 0.5
        assert abs(control["leak_aged"]) < 0.2
        # Hardly anything passes a quarter of a bit, though all features tell of the same.
        assert figures["narrow"]["lateral"][probe]["leak"] < 0.2
    stored = json.loads((tmp_path / "results.json").read_text())
    value, low, high = stored["open"]["lateral"]["linear"]["leak"]
    assert low < value < high
    assert low > 0.3
    assert (tmp_path / "probe.png").read_bytes()[1:4] == b"PNG"
    assert "narrow" in (tmp_path / "report.html").read_text()


@torch.no_grad()
def test_what_is_received_is_the_features_behind_the_channels_noise(tmp_path):
    policy = load_policy(tiny_policy(tmp_path / "policy", bits=40.0))
    images = {
        camera: np.random.default_rng(0).integers(0, 256, (300, 3, 16, 32)).astype(np.uint8)
        for camera in ("narrow", "wide")
    }
    clean = policy.features({name: torch.from_numpy(image) for name, image in images.items()})
    torch.testing.assert_close(features_of(policy, images), clean, atol=1e-5, rtol=0)
    apart = received(policy, clean, 3).unflatten(0, (3, 300)) - clean
    assert apart.std().item() == pytest.approx(policy.noise_std, rel=0.02)
    assert not torch.allclose(apart[0], apart[1])
    torch.testing.assert_close(received(policy, clean, 1) - clean, apart[0])
    policy.noise_std = 0.0
    torch.testing.assert_close(received(policy, clean, 1), clean)


def test_the_shipped_run_sees_pictures_as_training_does():
    probe = load(ProbePolicyRun, RUNS / "probe.yaml")
    training = load(TrainPolicyRun, RUNS / "reprojective.yaml")
    assert probe.photometry == training.env.photometry
    assert probe.pairs.max_age == training.world.max_age
    assert probe.pairs.lateral_offset == training.sampler.lateral_offset


def test_what_has_no_features_or_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="only a policy has features"):
        run(replace(RUN, policy="teacher"), tmp_path)
    given = {"policy": str(tiny_policy(tmp_path / "p")), "pairs": replace(PAIRS, width=64)}
    with pytest.raises(ValueError, match="sees 32 x 16 pixels, pairs are of 64 x 16"):
        run(replace(RUN, **given), tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_looks": 0}, "num_looks must be 1"),
        ({"policy": "a", "policies": {"b": "c"}}, "not both"),
        ({"pairs": LeakScenesConfig(num_roads=9)}, "too few for probe.num_folds 5"),
    ],
)
def test_impossible_runs_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        ProbePolicyRun(**changes)
