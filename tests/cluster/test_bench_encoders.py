import json
from dataclasses import replace

import pytest

from cluster.bench_encoders import bench_encoders, encoders_of, forward_and_backward, images
from drive_actors.fastvit import FastVit
from drive_actors.policy import PolicyConfig
from drive_envs.precision import autocast

SMALL = PolicyConfig(width=64, height=32, channels=(4, 8, 8))
BOTH = {"small": SMALL, "fastvit": replace(SMALL, encoder=FastVit(stride=8))}


@pytest.mark.slow
def test_each_encoder_is_counted_and_timed_both_ways(caplog):
    caplog.set_level("INFO")
    figures = bench_encoders(BOTH, num_images=32, num_repeats=3, precision="fp32", device="cpu")
    assert list(figures) == list(BOTH)
    stem, strided = 3 * 49 * 4 + 4, 9 * 4 * 8 + 8 + 9 * 8 * 8 + 8
    residual, last = 9 * 8 * 4 + 4 + 9 * 4 * 8 + 8, 8 * 4 + 4
    assert figures["small"]["parameters"] == stem + strided + residual + last
    for name, found in figures.items():
        assert 0 < found["forward_ms"] < found["forward_and_backward_ms"]
        assert f"encoder {name}, {found['parameters']} parameters" in caplog.text
    json.dumps(figures)


def test_the_gradient_is_taken_of_both_cameras():
    networks = encoders_of(SMALL, "cpu")
    forward_and_backward(networks, images(SMALL, 2, "cpu"), autocast("fp32", "cpu"))
    assert all(value.grad is not None for value in networks.parameters())
