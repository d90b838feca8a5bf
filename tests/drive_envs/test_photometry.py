import numpy as np
import pytest
from scipy.ndimage import convolve1d

from drive_envs.photometry import Looks, PhotometryConfig, develop, draw_looks, draw_places


def picture(num=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, 3, 12, 20), dtype=np.uint8)


def look(num=2, gain=(1.0, 1.0, 1.0), blur=0.0, noise=0.0):
    return Looks(np.tile(gain, (num, 1)), np.full(num, blur), np.full(num, noise))


def test_a_neutral_look_changes_nothing():
    assert PhotometryConfig().is_neutral
    looks = draw_looks(PhotometryConfig(), [np.random.default_rng(0)] * 2)
    assert (develop(picture(), looks, np.zeros(2, int)) == picture()).all()


def test_matches_the_definition():
    gain, variance = (0.7, 1.1, 1.4), 0.36
    kernel = [variance / 2, 1 - variance, variance / 2]
    expected = picture().astype(float)
    for axis in (2, 3):
        expected = convolve1d(expected, kernel, axis=axis, mode="nearest")
    expected = np.clip(expected * np.array(gain)[:, None, None], 0, 255)
    found = develop(picture(), look(gain=gain, blur=variance), np.zeros(2, int))
    assert np.abs(found - expected).max() <= 0.51


def test_noise_has_its_strength_and_its_place_decides():
    grey = np.full((2, 3, 64, 128), 128, np.uint8)
    places = draw_places(np.random.default_rng(3), 2)
    found = develop(grey, look(noise=5.0), places).astype(float) - 128
    assert found.std() == pytest.approx(5.0, rel=0.05)
    assert abs(found.mean()) < 0.1
    assert abs((found[0] * found[1]).mean()) < 0.5, "images have noise of their own"
    assert (develop(grey, look(noise=5.0), places) - 128.0 == found).all()


def test_ranges_are_kept_and_a_scene_draws_the_same_alone():
    config = PhotometryConfig(
        exposure=(0.8, 1.2), white_balance=0.05, blur=(0.2, 0.6), noise=(1.0, 4.0)
    )
    assert not config.is_neutral
    looks = draw_looks(config, [np.random.default_rng(i) for i in range(200)])
    assert 0.8 * 0.95 <= looks.gain.min() < 0.85
    assert 1.15 < looks.gain.max() <= 1.2 * 1.05
    assert 0.04 <= looks.blur.min() <= looks.blur.max() <= 0.36
    alone = draw_looks(config, [np.random.default_rng(7)])
    assert (looks.pick(np.array([7])).gain == alone.gain).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"blur": (0.0, 2.0)}, r"photometry.blur is \(0.0, 2.0\)"),
        ({"noise": (3.0, 1.0)}, "photometry.noise"),
        ({"white_balance": 1.0}, "photometry.white_balance is 1.0"),
    ],
)
def test_impossible_ranges_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        PhotometryConfig(**wrong)
