"""What can be told from features: a linear and a small non-linear probe, judged on other roads.

    R^2 = 1 - sum (y - f(x))^2 / sum (y - mean y)^2

Roads are dealt into folds, and what a fold's samples are is told by a probe that was fitted to the
other folds; some of their roads only choose how strong the ridge is and when learning stops. So no
road has a part in what is told of it. 0 is what one who knows nothing scores, 1 is everything;
a probe that has learnt what is not so scores below 0.

It does not know what the features or the target are.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import mse_loss

Probe = Literal["linear", "mlp"]
PROBES: tuple[Probe, ...] = ("linear", "mlp")

Features = Float[Tensor, "sample dim"]
Values = Float[Tensor, " sample"]
Roads = Int[Tensor, " sample"]


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How probes are fitted.

    num_folds: that the roads are dealt into. validation_share: of the roads fitted to, that choose.
    strengths: of the ridge, relative to the features' variance. hidden, learning_rate, weight_decay
    (AdamW), batch_size: of the small network; it learns for `max_epochs`, or until there was
    nothing new for `patience` of them.
    """

    num_folds: int = 5
    validation_share: float = 0.2
    strengths: tuple[float, ...] = (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
    hidden: int = 64
    learning_rate: float = 0.001
    weight_decay: float = 0.1
    batch_size: int = 256
    max_epochs: int = 100
    patience: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_folds < 2:
            raise ValueError(f"probe.num_folds must be 2 or more, got {self.num_folds}")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"probe.validation_share must be 0 to 1, got {self.validation_share}")
        if not self.strengths or min(self.strengths) <= 0:
            raise ValueError(f"probe.strengths must be positive, got {self.strengths}")
        for name in ("hidden", "batch_size", "max_epochs", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"probe.{name} must be 1 or more, got {getattr(self, name)}")


class Samples(NamedTuple):
    """Features and what is to be told from them."""

    x: Features
    y: Values


class Split(NamedTuple):
    """Which samples a probe is fitted to, chosen by, and judged on: parts with roads of their own.

    Each (sample,).
    """

    fitted: Bool[Tensor, " sample"]
    choosing: Bool[Tensor, " sample"]
    judged: Bool[Tensor, " sample"]


def held_out(
    probe: Probe, features: Features, target: Values, roads: Roads, config: ProbeConfig
) -> Values:
    """Tell the target of every sample from its features, by probes that do not know its road.

    `roads` are numbers that samples of one road share. ValueError when there are too few of them.
    """
    told = torch.zeros_like(target)
    for number, split in enumerate(splits(roads, config)):
        mean, std = center_and_spread(features[split.fitted])
        y_mean, y_std = center_and_spread(target[split.fitted])
        x, y = (features - mean) / std, (target - y_mean) / y_std
        fitted, choosing = (Samples(x[part], y[part]) for part in split[:2])
        judged = x[split.judged]
        if probe == "linear":
            found = judged @ ridge(fitted, choosing, config.strengths)
        else:
            found = perceptron(fitted, choosing, config, number)(judged)[:, 0].detach()
        told[split.judged] = found * y_std + y_mean
    return told


def splits(roads: Roads, config: ProbeConfig) -> list[Split]:
    """Deal the roads into folds and return one split a fold."""
    known = roads.unique()
    if len(known) < 2 * config.num_folds:
        raise ValueError(
            f"{len(known)} roads are too few for {config.num_folds} folds: draw at least "
            f"{2 * config.num_folds}, or lower probe.num_folds"
        )
    generator = torch.Generator().manual_seed(config.seed)
    shuffled = known[torch.randperm(len(known), generator=generator)]
    found = []
    for fold in range(config.num_folds):
        is_judged = torch.arange(len(shuffled)) % config.num_folds == fold
        others = shuffled[~is_judged]
        num_choosing = max(1, round(config.validation_share * len(others)))
        parts = (others[num_choosing:], others[:num_choosing], shuffled[is_judged])
        found.append(Split(*(torch.isin(roads, part) for part in parts)))
    return found


def center_and_spread(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over the samples; 1 where nothing varies."""
    std = values.std(dim=0)
    return values.mean(dim=0), torch.where(std > 0, std, 1.0)


def ridge(
    fitted: Samples, choosing: Samples, strengths: tuple[float, ...]
) -> Float[Tensor, " dim"]:
    """Return w = (X^T X + n k I)^-1 X^T y, with the k of `strengths` that is best on `choosing`."""
    x, y = fitted.x.double(), fitted.y.double()
    variance, axes = torch.linalg.eigh(x.T @ x / len(x))
    along = axes.T @ (x.T @ y) / len(x)
    weights = [(axes @ (along / (variance + k))).to(fitted.x) for k in strengths]
    return min(weights, key=lambda w: mse_loss(choosing.x @ w, choosing.y).item())


def perceptron(
    fitted: Samples, choosing: Samples, config: ProbeConfig, number: int
) -> nn.Sequential:
    """Train one hidden layer, and return it as it was when it was best on `choosing`.

    It begins by telling the mean, and stays there if nothing better is found. `number` tells one
    fold from another: seeds differ.
    """
    seed = 1000 * config.seed + number
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        last = nn.Linear(config.hidden, 1)
        network = nn.Sequential(nn.Linear(fitted.x.shape[1], config.hidden), nn.GELU(), last)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    best, best_epoch, kept = float("inf"), 0, network.state_dict()
    for epoch in range(config.max_epochs + 1):
        with torch.no_grad():
            error = mse_loss(network(choosing.x)[:, 0], choosing.y).item()
        if error < best:
            best, best_epoch = error, epoch
            kept = {name: value.clone() for name, value in network.state_dict().items()}
        if epoch - best_epoch >= config.patience:
            break
        for rows in torch.randperm(len(fitted.x), generator=generator).split(config.batch_size):
            loss = mse_loss(network(fitted.x[rows])[:, 0], fitted.y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.load_state_dict(kept)
    return network


def r_squared(
    target: Values, told: Values, roads: Roads, counts: Float[Tensor, "draw road"]
) -> Float[Tensor, " draw"]:
    """Return R^2 where each road, in the order of its number, counts as often as `counts` says."""
    _, index = roads.unique(return_inverse=True)

    def over_roads(values: Values) -> Float[Tensor, " draw"]:
        return counts.double() @ torch.bincount(index, values.double(), minlength=counts.shape[1])

    error, number = over_roads((target - told) ** 2), over_roads(torch.ones_like(target))
    spread = over_roads(target**2) - over_roads(target) ** 2 / number
    return (1 - error / spread).float()


def resampled(num_roads: int, num_draws: int, seed: int) -> Float[Tensor, "draw road"]:
    """Draw as many roads as there are, with replacement, `num_draws` times: how often each came."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(num_roads, (num_draws, num_roads), generator=generator)
    counts = torch.zeros(num_draws, num_roads)
    return counts.scatter_add_(1, drawn, torch.ones(num_draws, num_roads))
