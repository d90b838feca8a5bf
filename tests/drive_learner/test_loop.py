import io

import numpy as np
import pytest
from PIL import Image

from drive_learner.loop import Interval, LoopConfig, moving_image


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


def test_a_moving_image_holds_every_picture():
    pictures = [np.full((8, 16, 3), 60 * i, np.uint8) for i in range(4)]
    (value,) = moving_image("tag", pictures).value
    with Image.open(io.BytesIO(value.image.encoded_image_string)) as image:
        assert getattr(image, "n_frames", 1) == 4
        assert image.info["duration"] == 200
        for i in range(4):
            image.seek(i)
            found = np.asarray(image.convert("RGB"), np.int16)
            assert np.abs(found - 60 * i).max() <= 3
    assert (value.tag, value.image.width, value.image.height) == ("tag", 16, 8)


def test_things_that_never_happen_are_refused():
    with pytest.raises(ValueError, match="checkpoint_every"):
        LoopConfig(checkpoint_every=0)
