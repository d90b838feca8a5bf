import math
from dataclasses import replace

import pytest
import torch

from tests.world_model.conftest import CONFIG, NUM_HISTORY, make_window, without_anchors
from world_model.dit import WorldModel
from world_model.flow import noised
from world_model.objective import ObjectiveConfig, arrange, drift, losses, parallel_mask

PARALLEL = ObjectiveConfig(num_targets=4, history_noise=0.0, motion_dropout=0.0)
PAPER = replace(PARALLEL, layout="paper")
HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_copy_sees_what_the_frame_would_and_itself():
    num_anchors, num_clean, num_history = 2, 6, 3
    mask = parallel_mask(num_anchors, num_clean, num_history)
    for row in range(len(mask)):
        if row < num_anchors:
            expected = set(range(row + 1))
        else:
            place = row - num_anchors
            is_copy = place >= num_clean
            place = place - num_clean + num_history if is_copy else place
            earlier = {num_anchors + i for i in range(max(0, place - num_history), place)}
            expected = {0, 1} | earlier | {row}
        assert set(mask[row].nonzero()[:, 0].tolist()) == expected, row


def test_parallel_teaches_the_last_frames_from_the_clean_ones(window):
    sequence = arrange(window, PARALLEL, NUM_HISTORY, rng())
    anchors, clean, copies = sequence.latents.split([2, 6, 4], dim=1)
    torch.testing.assert_close(anchors, window.anchors)
    torch.testing.assert_close(clean, window.frames[:, :-1])
    noise = window.frames[:, 3:] - sequence.velocity
    torch.testing.assert_close(copies, noised(window.frames[:, 3:], noise, sequence.level))
    assert (sequence.told.tau[:, :8] == 0).all()
    torch.testing.assert_close(sequence.told.tau[:, 8:], sequence.level)
    assert sequence.told.place[0].tolist() == [7, 8, 0, 1, 2, 3, 4, 5, 3, 4, 5, 6]
    assert (sequence.planning, sequence.plans) == (slice(4, 8), slice(2, 6))


def test_what_the_frame_before_shows_is_noised_as_it_is():
    window = make_window(batch=40)
    still = window._replace(moved=window.frames.roll(1, 1))
    sequence = arrange(still, replace(PARALLEL, history_noise=0.5), NUM_HISTORY, rng())
    shown, moved = sequence.latents, sequence.told.moved
    assert 5 < (shown[:, 2] != window.frames[:, 0]).flatten(1).any(1).sum() < 35
    torch.testing.assert_close(moved[:, 3:8], shown[:, 2:7])
    torch.testing.assert_close(moved[:, 8:], shown[:, 4:8])
    torch.testing.assert_close(moved[:, :2], window.anchors_moved)
    torch.testing.assert_close(sequence.target, window.frames[:, 3:])
    one = make_window(batch=40, num_frames=4)
    one = one._replace(moved=one.frames.roll(1, 1))
    sequence = arrange(one, replace(PAPER, history_noise=0.5), NUM_HISTORY, rng())
    torch.testing.assert_close(sequence.told.moved[:, 3:], sequence.latents[:, 2:5])


def test_drift_is_of_all_sizes_and_lasts():
    noise = drift((400, 3, 2, 8, 16), rng())
    assert noise.var() == pytest.approx(1.0, abs=0.05)
    assert noise.mean((-2, -1)).var() > 0.15  # of white noise: 1 / 128
    assert (noise[:, 0] * noise[:, 2]).mean() == pytest.approx(0.5, abs=0.05)
    assert drift((2, 3, 4, 1, 2), rng()).shape == (2, 3, 4, 1, 2)


def test_what_is_expected_is_learnt_where_the_motion_is_known(window):
    model = WorldModel(CONFIG)
    config = replace(PARALLEL, motion_dropout=0.0)
    found = losses(model, window, config, NUM_HISTORY, rng())
    sequence = arrange(window, config, NUM_HISTORY, rng())
    expected = model.expect(sequence.told)
    assert expected is not None
    mean, deviation = (part[:, -4:].detach() for part in expected)
    density = torch.distributions.Normal(mean, deviation).log_prob(window.frames[:, 3:])
    wanted = (mean - window.frames[:, 3:]).square().mean() - density.mean() - HALF_LOG_2_PI
    torch.testing.assert_close(found.expectation, wanted)
    blind = losses(model, window, replace(PARALLEL, motion_dropout=1.0), NUM_HISTORY, rng())
    assert blind.expectation == 0


def test_the_network_is_not_told_that_the_history_is_noised():
    window = make_window(batch=400)
    config = replace(PARALLEL, history_noise=0.3)
    sequence = arrange(window, config, NUM_HISTORY, rng())
    changed = (sequence.latents[:, 2:8] != window.frames[:, :-1]).flatten(1).any(1)
    assert changed.float().mean() == pytest.approx(0.3, abs=0.07)
    assert (sequence.told.tau[:, :8] == 0).all()
    torch.testing.assert_close(sequence.latents[:, :2], window.anchors)


def test_paper_layout_has_one_level_for_all_or_a_noised_history():
    window = make_window(batch=400, num_frames=4)
    sequence = arrange(window, replace(PAPER, history_noise=0.3), NUM_HISTORY, rng())
    is_augmented = sequence.level[:, 0].isnan()
    assert is_augmented.float().mean() == pytest.approx(0.3, abs=0.07)
    plain, augmented = sequence.told.tau[~is_augmented], sequence.told.tau[is_augmented]
    assert (plain == plain[:, :1]).all()
    assert (plain > 0).all()
    assert (augmented[:, :-1] == 0).all()
    assert (augmented[:, -1] > 0).all()
    assert sequence.level[is_augmented, :-1].isnan().all()
    torch.testing.assert_close(sequence.latents[is_augmented, :2], window.anchors[is_augmented])
    history = sequence.latents[is_augmented, 2:5]
    assert (history - window.frames[is_augmented, :3]).abs().mean() > 0.3
    assert torch.equal(sequence.mask, torch.ones(6, 6).tril().bool())


def test_dropping_anchors_and_motion():
    window = without_anchors(make_window(batch=200))
    config = replace(PARALLEL, motion_dropout=0.25)
    sequence = arrange(window, config, NUM_HISTORY, rng())
    assert sequence.latents.shape[1] == 6 + 4
    assert not sequence.told.has_anchor.any()
    told = sequence.told.has_motion[:, 6:].float().mean()
    assert told == pytest.approx(0.75, abs=0.06)
    assert sequence.told.has_motion[:, 1:6].all()


def test_a_window_that_does_not_fit(window):
    with pytest.raises(ValueError, match="7 frames does not fit the layout 'paper', which takes 4"):
        arrange(window, PAPER, NUM_HISTORY, rng())


@pytest.mark.parametrize("config", [PARALLEL, PAPER], ids=["parallel", "paper"])
def test_overfits_one_window(config):
    torch.manual_seed(0)
    window = make_window(num_frames=config.num_frames(NUM_HISTORY))
    model = WorldModel(replace(CONFIG, flat_road=False))  # noise does not follow from noise
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    history = []
    for step in range(150):
        result = losses(model, window, config, NUM_HISTORY, rng(step % 4))
        optimizer.zero_grad()
        result.total.backward()
        optimizer.step()
        history.append((float(result.flow), float(result.plan)))
    (first_flow, first_plan), (flow, plan) = history[0], history[-1]
    assert first_flow == pytest.approx(2.0, abs=0.5)  # of a network that says nothing
    assert flow < 0.15 * first_flow
    assert plan < first_plan - 1.0
