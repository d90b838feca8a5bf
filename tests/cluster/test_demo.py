import pytest

from cluster.demo import Stage, describe, show, stage, tell
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
