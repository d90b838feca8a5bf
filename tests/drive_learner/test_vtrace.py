from typing import Any

import torch

from drive_learner.vtrace import vtrace


def by_definition(batch, rho_max, c_max):
    """The paper's double sum, literally, up to the last step of each episode: O(T^2)."""
    ratio = batch["log_ratio"].exp()
    rho, c = ratio.clamp(max=rho_max), ratio.clamp(max=c_max)
    reward, discount = batch["reward"], batch["discount"]
    delta = rho * (reward + discount * batch["next_value"] - batch["value"])
    target = batch["value"].clone()
    for b in range(reward.shape[1]):
        for s in range(len(reward)):
            for t in range(s, len(reward)):
                weight = (discount[s:t, b] * c[s:t, b]).prod()
                target[s, b] += weight * delta[t, b]
                if batch["is_last"][t, b]:
                    break
    return target


def random_batch(time=7, batch=3, seed=0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    log_ratio, reward, value = torch.randn(3, time, batch, generator=generator).double()
    final = torch.randn(1, batch, generator=generator).double()
    is_last = torch.zeros(time, batch, dtype=torch.bool)
    is_last[-1] = True
    return {
        "log_ratio": log_ratio,
        "reward": reward,
        "discount": 0.9 * (torch.rand(time, batch, generator=generator) > 0.2).double(),
        "value": value,
        "next_value": torch.cat([value[1:], final]),
        "is_last": is_last,
        "active": torch.ones(time, batch, dtype=torch.bool),
    }


def test_matches_the_definition():
    batch = random_batch()
    batch["is_last"][3, 1] = True
    expected = by_definition(batch, rho_max=1.5, c_max=1.0)
    torch.testing.assert_close(vtrace(**batch, rho_max=1.5, c_max=1.0).value_target, expected)


def test_advantage_uses_the_next_target():
    batch = random_batch()
    result = vtrace(**batch, rho_max=1.5)
    after = torch.cat([result.value_target[1:], batch["next_value"][-1:]])
    rho = batch["log_ratio"].exp().clamp(max=1.5)
    expected = rho * (batch["reward"] + batch["discount"] * after - batch["value"])
    torch.testing.assert_close(result.advantage, expected)


def test_on_policy_target_is_the_discounted_return():
    batch = random_batch()
    batch["log_ratio"].zero_()
    target = vtrace(**batch).value_target
    expected = batch["next_value"][-1]
    for t in reversed(range(len(target))):
        expected = batch["reward"][t] + batch["discount"][t] * expected
        torch.testing.assert_close(target[t], expected)


def test_truncation_inside_a_column_equals_each_fragment_alone():
    first, second = random_batch(time=4, seed=1), random_batch(time=6, seed=2)
    joined: dict[str, Any] = {key: torch.cat([first[key], second[key]]) for key in first}
    whole = vtrace(**joined)
    for together, alone_first, alone_second in zip(
        whole, vtrace(**first), vtrace(**second), strict=True
    ):
        torch.testing.assert_close(together, torch.cat([alone_first, alone_second]))


def test_a_scene_that_is_over_equals_the_scene_alone():
    """Rows after the end hold whatever they hold, even an overflowing ratio, and change nothing."""
    batch = random_batch(time=7)
    over = 4
    batch["is_last"][over - 1, 2] = True
    batch["active"][over:, 2] = False
    batch["log_ratio"][over:, 2] = 1e4
    alone: dict[str, Any] = {key: value[:over, 2:] for key, value in batch.items()}
    for together, separate in zip(vtrace(**batch), vtrace(**alone), strict=True):
        torch.testing.assert_close(together[:over, 2:], separate)
    result = vtrace(**batch)
    torch.testing.assert_close(result.value_target[over:, 2], batch["value"][over:, 2])
    assert (result.advantage[over:, 2] == 0).all()


def test_termination_forgets_the_future_and_truncation_does_not():
    batch = random_batch(time=1, batch=1)
    batch["log_ratio"].zero_()
    truncated = vtrace(**{**batch, "discount": torch.full((1, 1), 0.9).double()})
    terminated = vtrace(**{**batch, "discount": torch.zeros(1, 1).double()})
    reward, after = batch["reward"], batch["next_value"]
    torch.testing.assert_close(truncated.value_target, reward + 0.9 * after)
    torch.testing.assert_close(terminated.value_target, reward)
