import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from cluster.config import load
from cluster.evaluate_policy import (
    EvaluatePolicyRun,
    check_video,
    find_drivers,
    image_size,
    run,
    when_to_film,
)
from cluster.score_plots import draw_lateral, draw_pace
from cluster.score_report import failures_of, grid, headline, table_of, whole
from drive_actors.drivers import StraightDriver, TeacherDriver
from drive_actors.policy import Policy, PolicyConfig
from drive_actors.policy_file import save_policy
from drive_actors.scoring import lost, score
from drive_envs.blank import Blank
from drive_envs.metadrive_assets import assets_missing
from drive_envs.network_file import NetworkFileError
from drive_envs.scenarios import ScenarioError, load_scenarios

SHIPPED = load_scenarios()


def tiny_policy(folder, width=32):
    config = PolicyConfig(
        width=width,
        height=width // 2,
        channels=(4, 8, 8),
        num_features=16,
        bottleneck_bits=20.0,
        model_dim=16,
        num_layers=1,
        num_heads=2,
        num_hypotheses=2,
    )
    save_policy(Policy(config), folder)
    return folder


@pytest.fixture(scope="module")
def scenario_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenarios") / "mine.yaml"
    road = {"road": [{"straight": 100}], "lane_count": 1, "speed": 10, "duration": 4.0}
    near = {"name": "near", "station": 25, "lateral_offset": 0.4, **road}
    far = {"name": "far", "station": 30, "heading_offset_deg": -3.0, "seed": 3, **road}
    path.write_text(yaml.safe_dump([near, far]))
    return path


@pytest.fixture(scope="module")
def results():
    world = Blank(32, 16)
    drivers = {"teacher": TeacherDriver(), "straight": StraightDriver()}
    found = {
        label: {result.scenario: result for result in score(driver, SHIPPED[1:3], world)}
        for label, driver in drivers.items()
    }
    found["straight"]["straight-10-left"] = lost(SHIPPED[2], "its process died")
    return found


def test_shipped_run_loads():
    config = load(EvaluatePolicyRun, Path("cluster/runs/lane_centering.yaml"))
    assert config == EvaluatePolicyRun()


def test_headline_and_table_of_one_driver(results):
    only = {"teacher": results["teacher"]}
    figures = headline("lane_centering", "plain", only)
    assert figures["lane_centering"] == {"passed": 2, "total": 2}
    assert figures["noise"] == "plain"
    assert figures["mean_abs_lateral"] < 0.01
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table_of(SHIPPED[1:3], {"straight": results["straight"]}, "a title"))
    text = console.export_text()
    assert "straight-05-right" in text
    assert "straight: 0 of 2" in text
    failures = failures_of(results)
    assert [line.split(":")[0] for line in failures] == [
        "straight, straight-05-right",
        "straight, straight-10-left",
    ]
    assert "on average over the last" in failures[0]
    assert "its process died" in failures[1]


def test_a_score_with_lost_drives_is_none_to_keep(results):
    kept = headline("mine", "plain", {"teacher": results["teacher"]})
    assert whole(kept) == kept
    with pytest.raises(RuntimeError, match="1 drives of mine were lost"):
        whole(headline("mine", "plain", {"straight": results["straight"]}))


def test_headline_of_several_is_by_label(results):
    figures = headline("mine", "realistic", results)
    assert figures["mine"]["teacher"] == {"passed": 2, "total": 2}
    assert figures["mine"]["straight"] == {"passed": 0, "total": 2, "lost": 1}
    assert figures["mean_abs_lateral"]["straight"] > 0.5


def test_plot_shows_every_scenario(results, tmp_path):
    one = draw_lateral(SHIPPED[1:3], {"teacher": results["teacher"]})
    two = draw_lateral(SHIPPED[1:3], results)
    assert one[:8] == two[:8] == b"\x89PNG\r\n\x1a\n"
    assert one != two


def test_the_speed_that_a_driver_chose_has_columns_and_a_plot():
    paces = load_scenarios(Path("longitudinal"))[7:8]
    (kept, moving) = (
        {result.scenario: result for result in score(TeacherDriver(), some, Blank(32, 16))}
        for some in (SHIPPED[1:2], paces)
    )
    header, (row,) = grid(paces, {"teacher": moving})
    cells = dict(zip(header, row, strict=True))
    assert cells["verdict"] == "pass"
    assert float(cells["gap"]) == pytest.approx(4.4, abs=0.3)
    assert float(cells["way"]) == pytest.approx(1, abs=0.02)
    assert "gap" not in grid(SHIPPED[1:2], {"teacher": kept})[0]
    failed = {paces[0].name: lost(paces[0], "its process died")}
    assert grid(paces, {"a": moving, "b": failed})[1] == [[paces[0].name, "pass 0.00", "FAIL "]]
    one, two = (draw_pace(paces, {"teacher": drives}) for drives in (moving, failed))
    assert one[:8] == two[:8] == b"\x89PNG\r\n\x1a\n"
    assert one != two


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (EvaluatePolicyRun(policy="nowhere"), "nowhere: no policy there"),
        (EvaluatePolicyRun(policies={"a": "teacher", "b": "gone"}), "gone: no policy there"),
    ],
)
def test_a_missing_policy_is_named(config, words):
    with pytest.raises(ValueError, match=words):
        find_drivers(config)


def test_without_a_shipped_policy_the_mend_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr("cluster.evaluate_policy.files", lambda package: tmp_path)
    with pytest.raises(ValueError, match="train one with `drive train-policy`"):
        find_drivers(EvaluatePolicyRun())


def test_a_training_run_means_its_newest_checkpoint(tmp_path):
    for step in (9, 100):
        tiny_policy(tmp_path / "run" / "checkpoints" / f"step_{step:06d}")
    newest = tmp_path / "run" / "checkpoints" / "step_000100"
    for given in (tmp_path / "run", tmp_path / "run" / "checkpoints", newest):
        assert find_drivers(EvaluatePolicyRun(policy=str(given))) == {"policy": str(newest)}


def test_policies_must_fit_together(tmp_path):
    small, large = tiny_policy(tmp_path / "small"), tiny_policy(tmp_path / "large", width=64)
    assert image_size({"a": str(small), "b": "teacher"}, is_rendered=True) == (32, 16)
    with pytest.raises(ValueError, match="different image sizes"):
        image_size({"a": str(small), "b": str(large)}, is_rendered=True)
    with pytest.raises(ValueError, match="needs render=true"):
        image_size({"a": str(small)}, is_rendered=False)
    (small / "policy.safetensors").write_bytes(b"damaged")
    with pytest.raises(NetworkFileError, match=r"policy\.safetensors is damaged"):
        image_size({"a": str(small)}, is_rendered=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_processes": 0}, "num_processes must be 1"),
        ({"timeout": 0.0}, "timeout must be positive"),
        ({"policy": "teacher", "policies": {"a": "straight"}}, "not both"),
    ],
)
def test_impossible_runs_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        EvaluatePolicyRun(**changes)


def test_videos_are_of_what_there_is():
    with pytest.raises(ValueError, match="no such scenario; there are none, all, failed and str"):
        check_video(EvaluatePolicyRun(video="curve"), SHIPPED)
    with pytest.raises(ValueError, match="needs render=true"):
        check_video(EvaluatePolicyRun(video="all", render=False), SHIPPED)
    filmed = [when_to_film(video, "a") for video in ("none", "all", "failed", "a", "b")]
    assert filmed == ["never", "always", "failed", "always", "never"]


def test_a_missing_scenario_file_is_named(tmp_path):
    with pytest.raises(ScenarioError, match=r"no\.yaml: no such file"):
        run(EvaluatePolicyRun(policy="teacher", scenarios=tmp_path / "no.yaml"), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(assets_missing(), reason="MetaDrive's assets: run cluster/setup.sh")
@pytest.mark.usefixtures("shared_ray")
def test_drivers_are_compared_in_metadrive_and_everything_is_left_behind(scenario_file, tmp_path):
    untrained = str(tiny_policy(tmp_path / "policy"))
    config = EvaluatePolicyRun(
        policies={"good": "teacher", "bad": "straight", "untrained": untrained},
        scenarios=scenario_file,
        video="near",
    )
    figures = run(config, tmp_path)
    assert figures["mine"]["good"] == {"passed": 2, "total": 2}
    assert figures["mine"]["bad"] == {"passed": 1, "total": 2}
    assert figures["mine"]["untrained"]["total"] == 2
    stored = json.loads((tmp_path / "results.json").read_text())["drivers"]
    assert [result["scenario"] for result in stored["good"]] == ["near", "far"]
    (far,) = (result for result in stored["bad"] if not result["passed"])
    assert far["figures"]["mean_abs_lateral"] > 0.5
    assert far["lateral"][0] == pytest.approx(0, abs=1e-6)
    assert len(far["lateral"]) == len(far["time"])
    films = sorted(path.name for path in (tmp_path / "videos").iterdir())
    assert films == ["bad-near.mp4", "good-near.mp4", "untrained-near.mp4"]
    page = (tmp_path / "report.html").read_text()
    for part in ("data:image/png", "FAIL", "videos/good-near.mp4"):
        assert part in page
