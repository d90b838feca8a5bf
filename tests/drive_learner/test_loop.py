import pytest

from drive_learner.loop import Interval, LoopConfig


def test_figures_are_means_over_the_interval(monkeypatch):
    now = iter([100.0, 104.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    interval = Interval()
    interval.add({"loss/plan": 1.0}, idle=0.5)
    interval.add({"loss/plan": 3.0}, idle=1.5)
    assert interval.metrics() == {
        "loss/plan": 2.0,
        "learner/steps_per_second": 0.5,
        "learner/idle_share": 0.5,
    }


def test_things_that_never_happen_are_refused():
    with pytest.raises(ValueError, match="checkpoint_every"):
        LoopConfig(checkpoint_every=0)
