from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest

from cluster.config import dump, load_kept
from cluster.kept import claim, found, kept, kept_arrays
from cluster.train_policy import TrainPolicyRun


@dataclass(frozen=True, kw_only=True)
class Older:
    steps: int = 3


@dataclass(frozen=True, kw_only=True)
class Newer(Older):
    rate: float = 0.5


def never():
    raise AssertionError("this was done already")


def test_figures_are_kept_as_long_as_the_settings_are(tmp_path):
    path = tmp_path / "kept.json"
    assert found(path, Older()) is None
    assert kept(path, Older(), lambda: {"x": float("nan")}) == {"x": None}
    assert kept(path, Older(), never) == {"x": None}
    assert kept(path, Older(steps=4), lambda: {"x": 2}) == {"x": 2}
    assert found(path, Older()) is None


def test_a_setting_that_is_new_had_its_default(tmp_path):
    path = tmp_path / "kept.json"
    kept(path, Older(), lambda: {"x": 1})
    assert kept(path, Newer(), never) == {"x": 1}
    assert found(path, Newer(rate=0.6)) is None
    assert "rate" not in dump(Older())


def test_figures_of_settings_that_cannot_be_read_any_more_are_made_again(tmp_path):
    path = tmp_path / "kept.json"
    kept(path, Newer(), lambda: {"x": 1})
    assert kept(path, Older(), lambda: {"x": 2}) == {"x": 2}
    for text in ("", "3", "a: [", "nothing: known"):
        assert load_kept(Older, text) is None


def test_a_folder_is_of_one_training(tmp_path):
    training = TrainPolicyRun(seed=3)
    for _ in range(2):
        claim(tmp_path / "one", training)
    with pytest.raises(ValueError, match="training with other settings: choose another output"):
        claim(tmp_path / "one", replace(training, num_steps=3))


def test_arrays_that_are_there_are_not_made_again(tmp_path):
    files = [tmp_path / "parts" / f"{number}.npz" for number in range(3)]
    made = []

    @contextmanager
    def making():
        def make(number):
            if number == 2 and len(made) < 3:
                made.append("dies")
                raise OSError("the disk is full")
            made.append(number)
            return {"x": np.full(2, number)}

        yield make

    with pytest.raises(OSError, match="full"):
        kept_arrays(files, "making", making)
    assert not files[2].exists()
    assert [int(part["x"][0]) for part in kept_arrays(files, "making", making)] == [0, 1, 2]
    assert made == [0, 1, "dies", 2]
    kept_arrays(files, "making", never)
