import json
import shlex

import pytest

from cluster.demo import DemoRun, Stage, describe, show, stage, tell, train
from cluster.jobs import resolve
from cluster.main import parse
from drive_envs.segments import open_dataset


def test_the_sample_is_described(recordings, capsys):
    figures = show(open_dataset(recordings))
    assert figures == {"segments": 3, "minutes": 0.7, "kilometres": 0.4, "lane_changes": 0}
    text = capsys.readouterr().err
    assert all(word in text for word in ("held_out", "straight", "10.0"))


def test_a_drive_is_measured(recordings):
    facts = describe(open_dataset(recordings)[0])
    assert facts["seconds"] == pytest.approx(39 * 0.2)
    assert facts["metres"] == pytest.approx(39 * 2.0)
    assert facts["curvature"] < 1e-6


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_a_stage_leaves_what_its_command_leaves(recordings, tiny, tmp_path, caplog):
    baseline = DemoRun().baseline
    assert baseline
    overrides = (f"data={recordings}", "num_steps=2", *tiny, *baseline)
    with caplog.at_level("INFO"):
        figures = train(tmp_path / "baseline", overrides)
    assert figures["steps"] == 2
    assert figures["trajectory_mae"] > 0
    result = json.loads((tmp_path / "baseline" / "result.json").read_text())
    assert result["job"] == "train-policy"
    assert result["figures"]["mode"] == "off_policy"
    assert (tmp_path / "baseline" / "checkpoints" / "step_000002").is_dir()
    # What is printed can be typed: it resolves to the very same run.
    printed = next(line for line in caplog.messages if "drive train-policy" in line)
    parsed = parse(shlex.split(printed.strip())[1:])
    resolved = resolve(parsed.job, parsed.path, parsed.overrides)
    assert resolved.text == (tmp_path / "baseline" / "run.yaml").read_text()
    assert parsed.output == tmp_path / "baseline"


def test_stages_are_timed_and_listed(tmp_path, capsys):
    stages = []
    with stage(stages, "first"):
        pass
    with pytest.raises(KeyError), stage(stages, "second"):
        raise KeyError("x")
    assert [each.title for each in stages] == ["first"]
    tell([Stage(title="one", seconds=61.2), Stage(title="two", seconds=5.0)], tmp_path)
    text = capsys.readouterr().err
    assert "0:01:01" in text
    assert "0:01:06" in text
    assert str(tmp_path / "score" / "report.html") in text
