import pytest
import torch
from torch import nn

from world_model.optimizer import Optimizer, OptimizerConfig, learning_rate

CONFIG = OptimizerConfig(learning_rate=0.01, num_warmup_steps=4, average_decay=0.5)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 1))


def descend(net, optimizer, num):
    for _ in range(num):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(optimizer.step))
        optimizer.descend(net(x).square().mean())


def test_warm_up_and_cosine():
    rates = [learning_rate(step, 100, CONFIG) for step in range(100)]
    assert rates[0] == pytest.approx(0.01 / 5, rel=1e-3)
    assert max(rates) == pytest.approx(0.01, rel=0.02)
    assert rates.index(max(rates)) == 4
    assert rates[50] == pytest.approx(0.005, rel=0.01)
    assert rates[-1] < 1e-5


def test_a_restored_optimizer_goes_on_to_the_bit():
    net = network()
    optimizer = Optimizer(net, CONFIG, 20)
    descend(net, optimizer, 7)
    state, step = optimizer.state(), optimizer.step
    descend(net, optimizer, 5)

    other = network()
    again = Optimizer(other, CONFIG, 20)
    again.restore(step, state)
    descend(other, again, 5)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    for name, value in optimizer.averaged().items():
        assert torch.equal(value, again.averaged()[name])


def test_a_fresh_optimizer_can_be_saved_and_restored():
    net = network()
    state = Optimizer(net, CONFIG, 20).state()
    again = Optimizer(net, CONFIG, 20)
    again.restore(0, state)
    descend(net, again, 1)
    assert again.step == 1


def test_the_average_follows_the_weights():
    net = network()
    optimizer = Optimizer(net, OptimizerConfig(learning_rate=0.01, average_decay=0.99), 50)
    start = {name: value.clone() for name, value in net.named_parameters()}
    descend(net, optimizer, 30)
    for name, value in net.named_parameters():
        moved = (value - start[name]).abs().sum()
        behind = (value - optimizer.averaged()[name]).abs().sum()
        assert 0 < behind < 0.7 * moved


def test_biases_do_not_decay():
    net = network()
    optimizer = Optimizer(net, OptimizerConfig(weight_decay=0.5, num_warmup_steps=0), 10)
    named = dict(net.named_parameters())
    with torch.no_grad():
        named["0.bias"].fill_(1.0)
    before = named["0.weight"].norm()
    optimizer.descend(0.0 * net(torch.zeros(1, 3)).sum())
    assert torch.equal(named["0.bias"], torch.ones(8))
    assert named["0.weight"].norm() < before


def test_a_loss_that_is_not_finite_stops_before_the_weights_change():
    net = network()
    optimizer = Optimizer(net, CONFIG, 20)
    before = [value.clone() for value in net.parameters()]
    with pytest.raises(FloatingPointError, match="step 0 is nan"):
        optimizer.descend(torch.tensor(float("nan"), requires_grad=True))
    for a, b in zip(net.parameters(), before, strict=True):
        assert torch.equal(a, b)
