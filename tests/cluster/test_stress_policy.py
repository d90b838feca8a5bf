import json

import cv2
import pytest
import yaml

from cluster import stress_policy
from cluster.jobs import RUNS, resolve
from cluster.stress_policy import StressPolicyRun, run
from drive_actors.scorer import Scored
from drive_actors.scoring import lost
from drive_envs.conditions import CLEAR, Conditions
from drive_envs.metadrive_assets import assets_missing

ROAD = {"road": [{"straight": 60}], "station": 20, "speed": 5, "duration": 3}
SHORT = [
    {"name": "near", "lateral_offset": 0.3, **ROAD},
    {"name": "off", "lateral_offset": 1.9, **ROAD},
]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(SHORT))
    return StressPolicyRun(
        policy="straight",
        scenarios=tmp_path / "short.yaml",
        strengths={"light": (0.05,), "wind": (3.0, -3.0)},
        num_processes=1,
    )


@pytest.mark.slow
@pytest.mark.skipif(assets_missing(), reason="MetaDrive's assets: run cluster/setup.sh")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("shared_ray")
def test_everything_is_driven_once_and_a_stopped_run_goes_on(config, tmp_path, monkeypatch):
    figures = run(config, tmp_path)
    passed = figures["passed"]["straight"]
    assert figures["total"] == 2
    assert passed["clear"] == passed["light 0.05"] == 1
    assert passed["wind 3"] == passed["wind -3"] == 0
    for name in ("stress.png", "conditions.png", "report.html", "results.json"):
        assert (tmp_path / name).stat().st_size > 100
    day, night = (
        cv2.imread(str(tmp_path / "conditions" / f"{name}.png")) for name in ("clear", "light 0.05")
    )
    assert day is not None
    assert night is not None
    assert night.mean() < 0.6 * day.mean()

    rows = (tmp_path / "drives.jsonl").read_text().splitlines(keepends=True)
    assert len(rows) == 1 + 4 * 2
    (tmp_path / "drives.jsonl").write_text("".join(rows[:-1]) + rows[-1][:20])
    todo = []

    def lose(_config, items, scenarios, *_):
        yield from ((item, Scored(lost(scenarios[0], "its process died"), None)) for item in items)

    original = stress_policy.drives
    monkeypatch.setattr(stress_policy, "drives", lose)
    run(config, tmp_path)
    assert len((tmp_path / "drives.jsonl").read_text().splitlines()) == 4 * 2

    def drives(config, items, *rest):
        todo.extend(items)
        yield from original(config, items, *rest)

    monkeypatch.setattr(stress_policy, "drives", drives)
    assert run(config, tmp_path) == figures
    assert [item.point for item in todo] == [json.loads(rows[-1])["point"]]


@pytest.mark.usefixtures("shared_ray")
def test_drives_of_another_policy_are_not_taken_over(config, tmp_path):
    (tmp_path / "drives.jsonl").write_text(json.dumps({"drivers": {"a": "b"}}) + "\n")
    with pytest.raises(ValueError, match="of other policies or another noise"):
        run(config, tmp_path)


@pytest.mark.parametrize(
    ("strengths", "words"),
    [
        ({"snow": [1.0]}, "strengths.snow: no such condition; there are light"),
        ({"fog": []}, "strengths.fog must be one or more"),
        ({"fog": [0.1, 0.1]}, "each once"),
        ({"gain": [0.8, 1.0]}, "strengths.gain has 1, which is a clear day"),
        ({"light": [-1.0]}, "light must be positive"),
    ],
)
def test_strengths_that_mean_nothing_are_refused(strengths, words):
    with pytest.raises(ValueError, match=words):
        StressPolicyRun(strengths={name: tuple(given) for name, given in strengths.items()})


def test_the_shipped_run_tries_every_condition():
    config = resolve("stress-policy", RUNS / "stress.yaml", []).config
    assert set(config.strengths) == set(vars(CLEAR))
    assert config.points["clear"] == CLEAR
    assert config.points["fog 0.02"] == Conditions(fog=0.02)
    assert len(config.points) == 39
