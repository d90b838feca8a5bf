from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from drive_envs.branches import MANOEUVRES, NOBODY, BranchesConfig, random_branches, random_rows
from drive_envs.drives import DropError
from drive_envs.plan import STEP

CONFIG = BranchesConfig()
BEFORE, AFTER = 10, 25


def drawn(config=CONFIG, num=6):
    """Draw as many scenes as are wanted, in the order of their seeds."""
    found, seed = [], 0
    while len(found) < num:
        with suppress(DropError):
            found.append(random_branches(config, np.random.default_rng(seed), BEFORE, AFTER))
        seed += 1
        assert seed < 60 * num
    return found


@pytest.fixture(scope="module")
def scenes():
    return drawn()


def stations(scene, manoeuvre, slot):
    """Where a watched car is along our lane, NaN from where it is another one than at first."""
    rows = scene.after[manoeuvre]
    s, _ = scene.line.locate(np.array([row.place[slot, :2] for row in rows]))
    is_same = np.array([row.number[slot] == rows[0].number[slot] for row in rows])
    return np.where(np.logical_and.accumulate(is_same), s, np.nan)


def test_all_ways_begin_alike(scenes):
    for scene in scenes:
        assert len(scene.before) == BEFORE
        first = [scene.after[name][0] for name in MANOEUVRES]
        for row in first[1:]:
            np.testing.assert_array_equal(row.pose, first[0].pose)
            np.testing.assert_array_equal(row.place, first[0].place)
            np.testing.assert_array_equal(row.number, first[0].number)
        step = first[0].pose[:2] - scene.before[-1].pose[:2]
        assert np.hypot(*step) == pytest.approx(scene.before[-1].speed * STEP, abs=0.1)


def test_we_do_as_told(scenes):
    for scene in scenes:
        rows = scene.after
        speed = {name: np.array([row.speed for row in rows[name]]) for name in MANOEUVRES}
        assert speed["hold"] == pytest.approx(speed["hold"][0], abs=0.6)  # he eases off first
        assert (np.diff(speed["brake"]) <= 1e-9).all()
        lost = speed["brake"][0] - speed["brake"][-1]
        # 5 s of 2.5 m/s^2, but for the time in which it builds up
        assert lost == pytest.approx(min(speed["brake"][0], 2.5 * 5 - 1.6), abs=1.2)
        moved = rows["swerve"][-1].ego.offset - rows["hold"][-1].ego.offset
        assert moved == pytest.approx(1.5, abs=0.25)


def test_who_is_ahead_does_not_care_and_who_comes_brakes(scenes):
    yielded = []
    for scene in scenes:
        ahead = {name: stations(scene, name, 0) for name in MANOEUVRES}
        assert np.isfinite(ahead["hold"]).all()
        np.testing.assert_allclose(ahead["brake"], ahead["hold"], atol=1e-6)
        np.testing.assert_allclose(ahead["swerve"], ahead["hold"], atol=1e-6)
        coming = {name: stations(scene, name, 1) for name in MANOEUVRES}
        late = coming["swerve"] - coming["hold"]
        assert np.nanmin(late) > -0.1
        yielded.append(np.nanmax(late))
        np.testing.assert_allclose(
            (coming["brake"] - coming["hold"])[np.isfinite(coming["hold"])], 0, atol=1e-6
        )
    assert max(yielded) > 3  # metres that he has not come


def test_what_is_watched_is_the_next_of_its_lane(scenes):
    for scene in scenes:
        for row in scene.after["hold"]:
            ahead, coming = row.place
            x, y = ahead[:2] - row.pose[:2]
            forward = x * np.cos(row.pose[2]) + y * np.sin(row.pose[2])
            assert forward > 4
            assert np.cos(ahead[2] - row.pose[2]) > 0
            if row.number[1] != NOBODY:
                assert np.cos(coming[2] - row.pose[2]) < 0.3
            poses = np.concatenate(list(row.cars.values()))
            apart = np.hypot(*(poses[:, :2] - ahead[:2]).T)
            assert apart.min() < 0.01  # it is among those that are drawn


def test_a_scene_is_repeatable_and_has_who_was_asked_for():
    one, again = drawn(num=1)[0], drawn(num=1)[0]
    for name in MANOEUVRES:
        np.testing.assert_array_equal(one.rows(name)[-1].pose, again.rows(name)[-1].pose)
    near = replace(CONFIG, ahead=(20.0, 30.0))
    for scene in drawn(near, num=3):
        row = scene.after["hold"][0]
        assert 20 < np.hypot(*(row.place[0] - row.pose)[:2]) < 30


def test_nobody_there_is_no_scene():
    far = replace(CONFIG, ahead=(4.7, 4.8))
    with pytest.raises(DropError, match="nobody ahead"):
        random_branches(far, np.random.default_rng(0), BEFORE, AFTER)


def test_people_drive_on_such_roads_too():
    road, rows = random_rows(CONFIG, np.random.default_rng(3), 20)
    assert road.lane_count == 1
    assert len(rows) == 20


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"braking": 0.0}, "braking must be positive"), ({"ahead": (2.0, 9.0)}, r"above 4\.6 m")],
)
def test_bad_settings_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        BranchesConfig(**changes)
