"""What is made of measurements of our loop beside others, and that our loop is measured."""

import sys
import time
from pathlib import Path

import pytest

from cluster.bench_peers import (
    OURS,
    SHORT,
    PeersBench,
    described,
    headlines,
    judged,
    opened,
    row,
    table,
)
from cluster.peer import (
    PeerError,
    PeerProcess,
    descendants,
    proportional_bytes,
    used_seconds,
)

RATES = {"driven_per_second": 320.0, "dropped_per_second": 0.0, "learner_steps_per_second": 1.0}


def measured(rate: float) -> dict[str, float]:
    return {
        **RATES,
        "steps_per_second": rate,
        "memory_bytes": 2e9,
        "policy_lag": 1.5,
        "cpu_per_step": 0.002,
    }


def rows_at(config: PeersBench, place, rates: dict[str, float | None]):
    point = described(config, *place)
    return judged(
        [
            row(point, system, [] if rate is None else [measured(rate)], {})
            for system, rate in rates.items()
        ]
    )


def test_the_least_of_every_figure_is_the_headline() -> None:
    config = PeersBench()
    rows = rows_at(config, ("200 KB", 0.0, 2), {OURS: 900.0, "impala": 300.0, "appo": 250.0})
    rows += rows_at(config, ("200 KB", 50.0, 2), {OURS: 300.0, "impala": 310.0, "appo": None})
    found = headlines(rows)
    assert found["least_ratio"] == round(300 / 310, 3)
    assert found["rllib_200kb_0ms"] == 3.0
    # 320 steps/s of 2 actors with 8 scenes are 20 steps of 50 ms a second
    assert found["utilisation_50ms"] == 1.0


def test_without_a_peer_there_is_no_ratio() -> None:
    rows = rows_at(PeersBench(), ("1 KB", 0.0, 1), {OURS: 900.0, "impala": None})
    assert headlines(rows) == {
        "least_ratio": None,
        "rllib_200kb_0ms": None,
        "utilisation_50ms": None,
    }
    assert "impala" in table(rows)


def test_medians_are_taken_and_bytes_are_those_of_what_was_learnt() -> None:
    point = described(PeersBench(), "200 KB", 0.0, 2)
    assert point["bytes"] == 196_608
    found = row(point, OURS, [measured(rate) for rate in (1.0, 1000.0, 100.0)], {})
    assert found["steps_per_second"] == 100
    assert found["spread"] == [1, 1000]
    assert found["cpu_ms_per_step"] == 2
    assert found["mb_per_second"] == pytest.approx(19.7, abs=0.05)


def test_grids() -> None:
    assert PeersBench().points == list(SHORT)
    full = PeersBench(grid="full").points
    assert len(full) == 3 * 3 * 4
    assert {(size, ms) for size, ms, _ in SHORT} < {(size, ms) for size, ms, _ in full}
    with pytest.raises(ValueError, match="sample_factory_python: there is no /nowhere"):
        PeersBench(sample_factory_python=Path("/nowhere"))


def test_a_process_that_fails_is_an_error_that_says_what_it_said(tmp_path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    peer = PeerProcess("it", command, tmp_path / "log")
    with pytest.raises(PeerError, match=r"it ended when asked to open.*no such thing"):
        peer.ask("open", {})
    peer.end()


def test_the_memory_of_a_process_holds_that_of_its_children(tmp_path) -> None:
    child = "import sys; memory = bytearray(50_000_000); print(flush=True); sys.stdin.read()"
    program = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=-1, stdout=-1)\n"
        "child.stdout.readline()\n"
        "answers = os.fdopen(int(sys.argv[1]), 'w')\n"
        "for _ in sys.stdin: print('{}', file=answers, flush=True)\n"
    )
    peer = PeerProcess("it", [sys.executable, "-c", program], tmp_path / "log")
    assert peer.ask("open") == {}
    own, *others = descendants(peer._process.pid)
    assert len(others) == 1
    assert proportional_bytes(others[0]) > 50_000_000
    assert peer.memory_bytes() > proportional_bytes(own) + 50_000_000
    assert peer.cpu_seconds() > used_seconds(own)
    peer.end()
    for _ in range(200):  # its parent is gone, and it hears of it in its own time
        if proportional_bytes(others[0]) == 0:
            break
        time.sleep(0.05)
    assert proportional_bytes(others[0]) == 0


@pytest.mark.long
@pytest.mark.timeout(600)
def test_ours_is_measured_and_sleeps_as_long_as_it_is_told(tmp_path) -> None:
    config = PeersBench(scenes=2, fragment=10, sequences=2)
    point = described(config, "1 KB", 20.0, 1)
    with opened(config, point, [OURS], tmp_path) as (peers, told):
        figures = peers[OURS].ask("measure", 2.0)
    # 2 scenes, and 50 steps a second at the most
    assert 0 < figures["steps_per_second"] < 1.5 * 100
    assert figures["learner_steps_per_second"] == pytest.approx(figures["steps_per_second"] / 20)
    assert told[OURS]["store_bytes_per_second"] > 0
