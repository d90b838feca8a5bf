from dataclasses import replace

import pytest

from cluster.kept import claim, found, kept
from cluster.train_policy import TrainPolicyRun


def never():
    raise AssertionError("this was done already")


def test_figures_are_kept_as_long_as_the_settings_are(tmp_path):
    path = tmp_path / "kept.json"
    assert found(path, "a: 1") is None
    assert kept(path, "a: 1", lambda: {"x": float("nan")}) == {"x": None}
    assert kept(path, "a: 1", never) == {"x": None}
    assert kept(path, "a: 2", lambda: {"x": 2}) == {"x": 2}
    assert found(path, "a: 1") is None


def test_a_folder_is_of_one_training(tmp_path):
    training = TrainPolicyRun(seed=3)
    for _ in range(2):
        claim(tmp_path / "one", training)
    with pytest.raises(ValueError, match="training with other settings: choose another output"):
        claim(tmp_path / "one", replace(training, num_steps=3))
