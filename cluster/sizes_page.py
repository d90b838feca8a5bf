"""The page `cluster/specs/SIZES.md`, out of the arithmetic of `sizes`.

python -m cluster.sizes_page >cluster/specs/SIZES.md
"""

import sys
from pathlib import Path
from typing import Any

import jinja2

from cluster.counting import learnt_gflop
from cluster.sizes import ASSUMED, MEASURED, PLACES, Balance, Place, balance

TEMPLATE = Path(__file__).parent / "sizes.md.j2"

ADVICE = {
    "actors": "more cores and a higher `actors.max_actors` help, and nothing else",
    "world model": (
        "more actors would wait for frames: it takes more replicas (`service.num_replicas`), or "
        "frames of fewer steps (`service.sampler.num_steps`)"
    ),
    "learner": (
        "more actors would wait for it: give it more, or let it learn from each step less often "
        "(`queue.reuse`)"
    ),
    "shared GPU": "a GPU more for the world model helps, and leaves this one to the learner",
    "copying": (
        "more actors are of no use: one thread copies minibatches together, as often as "
        "`queue.reuse` says"
    ),
    "network": "more nodes are of no use: the learner's takes in what it can",
}


def page() -> str:
    """Write the page."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"percent": percent, "number": number}
    balances = [(place, balance(place)) for place in PLACES]
    some = balances[0][1].config
    return environment.from_string(TEMPLATE.read_text()).render(
        measured=MEASURED,
        assumed=ASSUMED,
        some=balances[0][1],
        learnt_gflop=learnt_gflop(some.policy, some.queue.sequence_length),
        frames={
            f"{place.model}, {one.config.service.sampler.num_steps} steps": one.frame_gflop
            for place, one in balances
            if place.model
        },
        sections=[section(place, one) for place, one in balances],
    )


def section(place: Place, one: Balance) -> dict[str, Any]:
    """Return what the page says of one run."""
    return {
        "place": place,
        "one": one,
        "has": equipment(place, one),
        "gpus": gpus(place, one),
        "seconds": one.config.num_steps / one.gradient_rate,
        "num_nodes": sum(count for _, count in place.nodes),
        "advice": ADVICE[one.full],
    }


def equipment(place: Place, one: Balance) -> str:
    """Say what a run has."""
    config, num_nodes = one.config, sum(count for _, count in place.nodes)
    where = f"{num_nodes} nodes" if num_nodes else f"{place.cores} cores"
    learner = "a GPU" if place.learner_gpu else f"{config.num_threads} threads"
    count = config.service.num_replicas
    replicas = f"a replica of {place.model}" if count == 1 else f"{count} replicas of {place.model}"
    actors = f"{where}, {config.actors.max_actors} actors, the learner on {learner}"
    return f"{actors}, {replicas}" if place.model else actors


def gpus(place: Place, one: Balance) -> str:
    """Say what a run's GPUs are busy with."""
    if not one.gpu_shares:
        return "none"
    model, learner = (percent(one.gpu_shares[part]) for part in ("world model", "learner"))
    count = one.config.service.num_replicas
    if not place.is_shared:
        return f"{learner} of the learner's own; {model} of each of the {count} of the world model"
    shared = f"{model} the world model, {learner} the learner"
    if count == 1:
        return shared
    return f"of the one that the learner uses too, {shared}; of each of the others, {model}"


def percent(share: float) -> str:
    """Write a share."""
    return f"{100 * share:.0f} %"


def number(value: float, digits: int = 0) -> str:
    """Write a number."""
    return f"{value:,.{digits}f}"


if __name__ == "__main__":
    sys.stdout.write(page())
