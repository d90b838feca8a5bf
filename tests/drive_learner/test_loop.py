import pytest
import torch

from drive_learner.learner import Learner, LearnerConfig
from drive_learner.loop import Interval, LoopConfig, learn


def test_figures_are_means_over_the_interval(monkeypatch):
    now = iter([100.0, 104.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    interval = Interval()
    interval.add({"loss/plan": 1.0}, idle=0.5)
    interval.add({"loss/plan": 3.0, "first_use/value": 5.0}, idle=1.5)
    assert interval.metrics() == {
        "loss/plan": 2.0,
        "first_use/value": 5.0,
        "learner/steps_per_second": 0.5,
        "learner/idle_share": 0.5,
    }


def test_things_that_never_happen_are_refused():
    with pytest.raises(ValueError, match="checkpoint_every"):
        LoopConfig(checkpoint_every=0)
    with pytest.raises(ValueError, match="publish_lag"):
        LoopConfig(publish_lag=-1)


class Publications:
    """A feed of nothing that remembers what it was told to publish."""

    def __init__(self):
        self.versions, self.weights = [], []

    def start(self, version, weights):
        self.publish(version, weights)

    def publish(self, version, weights):
        self.versions.append(version)
        self.weights.append(weights["encoder"])

    latest = None

    def next(self, version):
        return version

    def give_back(self, batch):
        pass

    def state(self):
        return {}

    def metrics(self):
        return {}


@pytest.mark.parametrize(
    ("lag", "versions"), [(0, [0, 2, 4, 6, 8, 10]), (1, [0, 2, 4, 6, 8]), (4, [0, 2])]
)
def test_weights_are_published_late_if_that_is_asked_for(
    tiny_policy, tmp_path, monkeypatch, lag, versions
):
    learner, feed = Learner(tiny_policy, LearnerConfig(num_steps=10)), Publications()

    def update(batch):
        learner.step += 1
        return {}

    monkeypatch.setattr(learner, "update", update)
    monkeypatch.setattr(
        learner, "weights", lambda averaged: {"encoder": torch.tensor(float(learner.step))}
    )
    monkeypatch.setattr("drive_learner.loop.save", lambda *args: None)
    monkeypatch.setattr("drive_learner.loop.film", lambda *args: None)
    learn(learner, feed, LoopConfig(publish_every=2, publish_lag=lag), tmp_path, run="")
    assert feed.versions == versions
    assert [float(weights) for weights in feed.weights] == versions
