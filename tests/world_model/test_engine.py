"""Sessions: what they show does not depend on who else is there, and nothing of them is left."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from drive_envs.protocol import BadRequestError, NoRoomError, SessionLostError
from tests.world_model.conftest import CONFIG, assert_alike, drive, opening, step_of
from world_model.dit import WorldModel


def test_a_session_shows_the_same_alone_and_among_others(make_engine):
    first, second = opening("a"), opening("b", num_scenes=3, seed=1)
    alone = {request.session: drive(make_engine(), request) for request in (first, second)}
    engine = make_engine(batch_size=4)
    engine.open(first)
    found = {"a": [], "b": []}
    for frame in range(7):  # b comes two frames later, and leaves two frames later
        if frame == 2:
            engine.open(second)
        asked = []
        if frame < 5:
            asked.append(step_of(first, frame + 1))
        if frame >= 2:
            asked.append(step_of(second, frame - 1))
        for request, views in zip(asked, engine.step(asked), strict=True):
            found[request.session].append(views)
    for name, views in found.items():
        for one, other in zip(views, alone[name], strict=True):
            assert_alike(one, other)


def test_without_anchors_the_future_changes_nothing(make_engine):
    request = opening("a")
    other = replace(request, anchors=255 - request.anchors, anchor_poses=request.anchor_poses + 1)
    for is_anchored, is_same in ((True, False), (False, True)):
        one, another = (
            drive(make_engine(is_anchored=is_anchored), each, 2)[-1].plan
            for each in (request, other)
        )
        assert np.array_equal(one, another) == is_same


def test_scenes_that_are_over_are_left_out(make_engine):
    request = opening("a", num_scenes=3)
    whole = drive(make_engine(), request)
    engine = make_engine()
    engine.open(request)
    for frame in range(5):
        scenes = [0, 1, 2] if frame < 2 else [0, 2]
        (views,) = engine.step([step_of(request, frame + 1, scenes)])
        expected = whole[frame]
        rows = replace(expected, images=expected.images[scenes], plan=expected.plan[scenes])
        assert_alike(views, rows)


def test_a_request_that_is_repeated_gets_the_same_answer(make_engine):
    engine, request = make_engine(), opening("a")
    engine.open(request)
    (first,) = engine.step([step_of(request, 1)])
    (again,) = engine.step([step_of(request, 1)])
    assert again is first
    assert engine.counters.repeated == 1
    other = replace(step_of(request, 1), poses=step_of(request, 1).poses + 0.1)
    (answer,) = engine.step([other])
    assert isinstance(answer, BadRequestError)


def test_what_was_seen_is_remembered_in_place_of_what_would_be_generated(make_engine):
    request = opening("a")
    generated = drive(make_engine(), request, 2)
    engine = make_engine()
    engine.open(request)
    seen = replace(step_of(request, 1), seen=generated[0].images)
    (views,) = engine.step([seen])
    assert views.images is None
    # The same picture but for its rounding to pixels, so about the same plan and next frame.
    (after,) = engine.step([step_of(request, 2)])
    other = replace(seen, seen=255 - generated[0].images)
    engine.open(request)
    (changed,) = engine.step([other])
    assert np.abs(after.images.astype(int) - generated[1].images).mean() < 3
    assert np.abs(changed.plan - views.plan).max() > 1e-3


def test_no_room_is_an_error_and_places_come_back(make_engine):
    engine = make_engine(capacity=4)
    engine.open(opening("a", num_scenes=3))
    with pytest.raises(NoRoomError, match=r"raise engine.capacity \(.* MB a scene\)"):
        engine.open(opening("b", num_scenes=2))
    assert engine.close("a")
    assert not engine.close("a")
    engine.open(opening("b", num_scenes=4))
    engine.open(opening("b", num_scenes=4))  # anew: its old places are its own
    assert engine.num_free == 0
    engine.close("b")
    assert engine.num_free == 4
    assert engine.counters.opened == engine.counters.closed == 3
    assert engine.counters.refused == 1


def test_a_driver_that_vanished_gives_its_places_back(make_engine):
    engine = make_engine(lease=1e-9)
    engine.open(opening("a"))
    assert engine.expire() == ["a"]
    assert engine.num_free == 8
    (answer,) = engine.step([step_of(opening("a"), 1)])
    assert isinstance(answer, SessionLostError)


def test_a_frame_that_is_skipped_is_a_session_unknown(make_engine):
    engine, request = make_engine(), opening("a")
    engine.open(request)
    (answer,) = engine.step([step_of(request, 2)])
    assert isinstance(answer, SessionLostError)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"context": np.zeros((2, 2, 2, 3, 16, 32), np.uint8)}, "context_poses is"),
        ({"context": np.zeros((2, 4, 2, 3, 16, 16), np.uint8)}, "context is"),
        ({"anchors": np.zeros((2, 9, 2, 3, 16, 32), np.uint8)}, "anchors is"),
        ({"wait": np.zeros(2, np.int64)}, "not in the future"),
        ({"context_poses": np.full((2, 4, 3), np.nan)}, "not finite"),
        ({"seed": np.array([1, -1])}, "frame or seed is negative"),
        ({"frame": -1}, "frame or seed is negative"),
    ],
)
def test_an_opening_that_does_not_fit(make_engine, change, match):
    engine = make_engine()
    with pytest.raises(BadRequestError, match=match):
        engine.open(replace(opening("a"), **change))
    assert engine.num_free == 8


@pytest.mark.parametrize(
    "change",
    [
        {"scenes": np.array([0, 0])},
        {"scenes": np.array([0, 7])},
        {"poses": np.full((2, 3), np.inf)},
        {"poses": np.zeros((1, 3))},
        {"seen": np.zeros((2, 2, 3, 8, 8), np.uint8)},
    ],
)
def test_a_bad_request_harms_no_other(make_engine, change):
    engine, good, bad = make_engine(), opening("a"), opening("b")
    engine.open(good)
    engine.open(bad)
    answers = engine.step([replace(step_of(bad, 1), **change), step_of(good, 1)])
    assert isinstance(answers[0], BadRequestError)
    assert answers[1].images.shape == (2, 2, 3, CONFIG.height, CONFIG.width)


def test_weights_are_replaced_while_sessions_are_open(make_engine, tokenizer):
    engine, request = make_engine(), opening("a")
    engine.open(request)
    engine.step([step_of(request, 1)])
    torch.manual_seed(5)
    engine.replace_weights(WorldModel(CONFIG), tokenizer)
    (views,) = engine.step([step_of(request, 2)])
    assert views.images.shape[0] == 2
    with pytest.raises(ValueError, match="start another service"):
        engine.replace_weights(WorldModel(replace(CONFIG, size="pico")), tokenizer)
