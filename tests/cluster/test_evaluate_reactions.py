"""What is said of cars, where it is known what they do."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cluster.evaluate_reactions import (
    KINDS,
    QUESTIONS,
    EvaluateReactionsRun,
    Seen,
    answers,
    headline,
    in_lane,
    kept_in_sight,
    look,
    share,
    write_page,
)
from drive_envs.branches import MANOEUVRES
from drive_envs.centerline import Arc, Centerline
from world_model.car_net import CarNetErrors, CarsSeen

COPIED, SWERVED, YIELDED = QUESTIONS
NUM_SCENES, NUM_FRAMES = 4, 10
ERRORS = CarNetErrors(*(torch.tensor([0.01, 0.02]) for _ in CarNetErrors._fields))


def world(copied, moved, yielded):
    """Make what is seen where cars do a share of what we do, and of what they should."""
    frame = np.arange(NUM_FRAMES)
    ours = np.zeros((NUM_SCENES, len(MANOEUVRES), NUM_FRAMES, 2))
    ours[..., 0] = 3 * frame
    ours[:, 1, :, 0] -= 0.2 * frame**2 / 2
    ours[:, 2, :, 1] = 0.15 * frame
    truly = np.zeros((NUM_SCENES, len(MANOEUVRES), NUM_FRAMES, 2, 2))
    truly[..., 0, 0] = 30 + 3 * frame
    truly[..., 1, 0] = 90 - 3 * frame
    truly[..., 1, 1] = 3.5
    truly[:, 2, :, 1, 0] += 0.3 * frame
    by_kind = {kind: truly.copy() for kind in KINDS}
    generated = by_kind["generated"]
    generated[:, 1, :, 0, 0] += copied * (ours[:, 1] - ours[:, 0])[..., 0]
    generated[:, 2, :, 0, 1] += moved * ours[:, 2, :, 1]
    generated[:, 2, :, 1, 0] += (yielded - 1) * 0.3 * frame
    visible = np.ones(truly.shape[:-1], bool)
    return Seen(ours=ours, truly=truly, by_kind=by_kind, visible=visible)


def test_what_is_copied_and_yielded_is_found_again():
    seen = world(copied=0.6, moved=0.25, yielded=0.3)
    figures = headline(seen, ERRORS)
    assert figures["brake_copied_truth"] == figures["brake_copied_drawn"] == 0
    assert figures["brake_copied_generated"] == pytest.approx(0.6, abs=1e-3)
    assert figures["swerve_copied_generated"] == pytest.approx(0.25, abs=1e-3)
    assert figures["yielded_truth"] == figures["yielded_drawn"] == pytest.approx(1)
    assert figures["yielded_generated"] == pytest.approx(0.3, abs=1e-3)
    assert figures["car_net_missed"] == 0.02
    assert figures["ahead_seen_generated"] == 1


def test_cars_that_are_not_seen_are_left_out_and_counted():
    seen = world(copied=0.5, moved=0, yielded=1)
    seen.by_kind["generated"][:, 1, 5:, 0] = np.nan  # lost while we brake
    seen.by_kind["generated"][0, 0, :, 1] = np.nan
    did, of = answers(seen, COPIED, "generated")
    assert np.isfinite(did).sum() == NUM_SCENES * 5
    assert np.isfinite(of).sum() == NUM_SCENES * 5
    assert share(did, of) == pytest.approx((0.5, 0.5, 0.5))
    there = kept_in_sight(seen, "generated", 0)
    assert there[:5] == pytest.approx(1)
    assert there[5:] == pytest.approx(2 / 3)
    assert kept_in_sight(seen, "generated", 1) == pytest.approx(1 - 1 / (3 * NUM_SCENES))
    assert kept_in_sight(seen, "drawn", 0) == pytest.approx(1)


def test_what_nobody_can_see_is_not_judged():
    seen = world(copied=0.5, moved=0, yielded=1)
    seen.visible[...] = False
    assert headline(seen, ERRORS)["brake_copied_generated"] is None
    assert np.isnan(kept_in_sight(seen, "generated", 0)).all()


def test_intervals_are_over_scenes():
    of = np.ones((20, 5))
    sure = share(np.full((20, 5), 0.4), of)
    assert sure == pytest.approx((0.4, 0.4, 0.4))
    split = share(np.where(np.arange(20)[:, None] % 2, 1.0, 0.0) * of, of)
    assert split is not None
    assert split[0] == pytest.approx(0.5)
    assert 0.2 < split[1] < 0.4
    assert 0.6 < split[2] < 0.8
    assert share(of, 0 * of) is None


def test_the_page_says_what_was_found(tmp_path):
    seen = world(copied=0.6, moved=0.25, yielded=0.3)
    write_page(tmp_path, "shipped, 4 scenes.", seen, ERRORS, headline(seen, ERRORS), ["a.mp4"])
    page = (tmp_path / "report.html").read_text()
    assert "0.60 (0.60 to 0.60)" in page
    assert "a.mp4" in page
    assert (tmp_path / "reactions.png").stat().st_size > 0


def lane_scene():
    """Stand in for a scene on a straight lane to the north, in which we drive 2 m a frame."""
    line = Centerline(arcs=(Arc(x=5.0, y=0.0, yaw=np.pi / 2, length=200.0, curvature=0.0),))
    frame = np.arange(6.0)
    poses = np.stack([np.full(6, 5.0), 2 * frame, np.full(6, np.pi / 2)], axis=-1)
    poses = np.repeat(poses[None], len(MANOEUVRES), axis=0)
    places = np.full((len(MANOEUVRES), 6, 2, 3), np.nan)
    places[..., 0, :] = [5.0, 30.0, np.pi / 2]
    numbers = np.tile([7, -1], (len(MANOEUVRES), 6, 1))
    numbers[1, 4:, 0] = 8
    return SimpleNamespace(
        branches=SimpleNamespace(line=line),
        drive=SimpleNamespace(poses=poses),
        places=places,
        numbers=numbers,
        first=1,
    )


def test_places_are_said_along_the_lane_and_identities_kept(monkeypatch):
    scene = lane_scene()

    def see(network, images):
        """See somebody 20 m ahead and 1 m to the left in every frame, and nobody who comes."""
        num = len(images)
        logit = torch.tensor([[1.0, -1.0]]).expand(num, 2)
        x, y = torch.tensor(20.0), torch.tensor(1.0)
        return CarsSeen(logit, x.hypot(y).expand(num, 2), y.atan2(x).expand(num, 2))

    monkeypatch.setattr("cluster.evaluate_reactions.cars_seen", see)
    frames = {"generated": [torch.zeros(1, 5, 2, 3, 8, 16, dtype=torch.uint8)] * len(MANOEUVRES)}
    seen = look(None, [scene], frames)  # pyright: ignore[reportArgumentType]  # stand-ins
    np.testing.assert_allclose(seen.ours[0, 0, :, 0], 2 * np.arange(1, 6))
    np.testing.assert_allclose(seen.truly[0, ..., 0, 0], 30)
    ahead = seen.by_kind["generated"][0, ..., 0, :]
    np.testing.assert_allclose(ahead[..., 0], 20 + np.tile(2 * np.arange(1, 6), (3, 1)), rtol=1e-5)
    np.testing.assert_allclose(ahead[..., 1], 1, rtol=1e-4)
    assert np.isnan(seen.by_kind["generated"][..., 1, :]).all()
    assert seen.visible[0, 0, :, 0].all()
    assert seen.visible[0, 1, :, 0].tolist() == [True, True, True, False, False]
    assert not seen.visible[..., 1].any()


def test_unknown_places_stay_unknown():
    found = in_lane([lane_scene()], np.array([[[np.nan, 1.0], [4.0, 10.0]]]))  # pyright: ignore
    assert np.isnan(found[0, 0]).all()
    np.testing.assert_allclose(found[0, 1], [10, 1])


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="num_scenes is 0"):
        EvaluateReactionsRun(num_scenes=0)
