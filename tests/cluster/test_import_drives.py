import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from cluster.import_drives import ImportRun, num_held_out, run
from cluster.inspect_drives import InspectRun
from cluster.inspect_drives import run as inspect
from cluster.main import main
from drive_envs.depth_sources import GroundPlane
from drive_envs.plain_drive import Plain
from drive_envs.real_segments import Cut
from drive_envs.reprojective import Reprojective, ReprojectiveConfig
from drive_envs.scenes import SamplerConfig, SceneSampler
from drive_envs.segment import SegmentError
from drive_envs.segments import open_dataset, write_segments

CUT = Cut(width=64, height=32, margin=8, seconds=4.0, min_seconds=2.2)


@pytest.fixture(scope="module")
def drives(real, tmp_path_factory):
    """Two plain drives of 6 s, the second with a damaged picture, and one without a camera."""
    folder = tmp_path_factory.mktemp("drives")
    for name in ("a", "b", "c"):
        real.write_plain(folder / name, real.Drive(120))
    (folder / "b" / "images" / "0040.png").write_bytes(b"no picture")
    (folder / "c" / "camera.json").write_text('{"fx": 100}')
    return folder


def test_what_can_be_used_is_imported_and_what_cannot_is_counted(drives, tmp_path):
    path = tmp_path / "drives.parquet"
    config = ImportRun(path=path, source=Plain(folder=drives), cut=CUT, held_out_fraction=0.5)
    figures = run(config, tmp_path)
    assert (figures["drives"], figures["segments"]) == (3, 2)
    assert figures["frames_left_out"] == {"damaged image": 1, "too short a piece": 74}
    assert figures["drives_left_out"] == {"'fy' should be a number": 1}
    assert figures["row_interval"] == 0.2
    told = (tmp_path / "left_out.txt").read_text()
    assert f"{drives}/b/images/0040.png: frame 40: damaged image" in told
    assert f"{drives}/c/camera.json: 'fy' should be a number (it is None)" in told
    dataset = open_dataset(path)
    assert not dataset.skipped
    assert [(s.name, s.split) for s in dataset] == [("a-000", "train"), ("b-000", "held_out")]


def test_an_imported_drive_is_driven(drives, tmp_path):
    path = tmp_path / "drives.parquet"
    run(ImportRun(path=path, source=Plain(folder=drives / "a"), cut=CUT), tmp_path)
    dataset = open_dataset(path)
    scene = SceneSampler(dataset, SamplerConfig(num_steps=(5, 6)))(np.random.default_rng(0))
    world = Reprojective(ReprojectiveConfig(width=64, height=32))
    world.reset([scene])
    poses = scene.path.poses[[scene.start]]
    seen = world.render(poses, 0, poses[:, 0] == poses[:, 0])
    for name in ("narrow", "wide"):
        assert seen[name].shape == (1, 3, 32, 64)
        assert seen[name].std() > 10


def test_recordings_are_inspected(drives, tmp_path, capfd):
    path = tmp_path / "drives.parquet"
    run(ImportRun(path=path, source=Plain(folder=drives / "a"), cut=CUT), tmp_path)
    figures = inspect(InspectRun(data=str(path), num_frames=3, num_looks=2), tmp_path)
    assert (figures["segments"], figures["frames"], figures["lane_changes"]) == (1, 20, 0)
    assert figures["mean_speed"] == pytest.approx(10.0, abs=0.3)
    assert figures["share_with_depth"] == 1.0
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "plain a" in page
    assert "mean m/s" in capfd.readouterr().err


def test_damaged_recordings_are_left_out_of_the_figures(synthetic, drives, tmp_path):
    path = tmp_path / "drives.parquet"
    config = ImportRun(path=path, source=Plain(folder=drives), cut=CUT, held_out_fraction=0.5)
    run(config, tmp_path)
    synthetic.damage(path, group=1, column="depth_wide")
    figures = inspect(InspectRun(data=str(path), num_frames=2, num_looks=1), tmp_path)
    assert (figures["segments"], figures["held_out"]) == (1, 0)
    assert figures["skipped"] == {"damaged segment: drives.parquet": 1}
    assert "Left out: 1 x damaged segment" in (tmp_path / "report.html").read_text()
    synthetic.damage(path, group=0, column="image_narrow")
    with pytest.raises(SegmentError, match=r"no segment to read \(skipped: 2 x damaged segment"):
        inspect(InspectRun(data=str(path)), tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["source.folder=nowhere"], "nowhere: no such folder; source.folder=PATH says where it is"),
        (["source.folder=."], "no drive of kind 'plain' in it: a drive has 'poses.csv' beside"),
        (["source.kind=kitti-raw", "source.folder=."], "a drive has an oxts and an image folder"),
        (["path=x.csv"], "path must end in .parquet, got x.csv"),
        (["depth.kind=lidar"], "depth.kind should be 'ground-plane' or 'sparse'"),
        (["depth.kind=model"], "depth.model is empty: give the folder of a depth network"),
        (["cut.width=65"], "aspect ratio"),
    ],
)
def test_mistakes_are_said_in_one_line(tmp_path, monkeypatch, capfd, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(["import", *words]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("drive: ")]
    assert len(lines) == 1
    assert said in lines[0]


def test_nothing_to_import_is_an_error_with_its_causes(drives, tmp_path):
    config = ImportRun(path=tmp_path / "x.parquet", source=Plain(folder=drives / "c"), cut=CUT)
    with pytest.raises(ValueError, match=r"no segment could be made of 1 drives \(1 x 'fy'"):
        run(config, tmp_path)
    assert not (tmp_path / "x.parquet").exists()
    short = ImportRun(
        path=tmp_path / "x.parquet",
        source=Plain(folder=drives / "a"),
        cut=Cut(width=64, height=32, min_seconds=10.0),
        depth=GroundPlane(),
    )
    with pytest.raises(ValueError, match=r"\(30 x too short a piece\)|too short a piece"):
        run(short, tmp_path)


def test_the_only_drive_gives_its_last_segments_to_the_held_out(real, tmp_path):
    real.write_plain(tmp_path / "mine", real.Drive(200))
    path = tmp_path / "drives.parquet"
    cut = Cut(width=64, height=32, margin=8, seconds=2.4, min_seconds=2.2)
    source = Plain(folder=tmp_path / "mine")
    run(ImportRun(path=path, source=source, cut=cut, held_out_fraction=0.25), tmp_path)
    assert [s.split for s in open_dataset(path)] == ["train"] * 3 + ["held_out"]
    assert json.loads(open_dataset(path)[3].source)["first_frame"] == 144


@pytest.mark.parametrize(
    ("fraction", "wanted"),
    [
        (0.125, [0, 0, 1, 1, 1, 1, 1, 1, 1]),
        (0.5, [0, 0, 1, 2, 2, 2, 3, 4, 4]),
        (0.9, [0, 0, 1, 2, 3, 4, 5, 6, 7]),
        (0.0, [0] * 9),
        (1.0, list(range(9))),
    ],
)
def test_of_two_one_is_held_out_and_one_is_not(fraction, wanted):
    assert [num_held_out(fraction, count) for count in range(9)] == wanted


def splits_of(folder, tmp_path, cut=CUT):
    """Import all drives below a folder, and return the splits of what was made."""
    path = tmp_path / "splits.parquet"
    path.unlink(missing_ok=True)
    figures = run(ImportRun(path=path, source=Plain(folder=folder), cut=cut), tmp_path)
    splits = [segment.split for segment in open_dataset(path)]
    assert figures["held_out"] == splits.count("held_out")
    return splits


def test_something_is_held_out_where_there_are_two_segments(real, tmp_path, caplog):
    drives = tmp_path / "drives"
    real.write_plain(drives / "b", real.Drive(130))
    short = replace(CUT, seconds=3.0)
    with caplog.at_level(logging.WARNING):
        assert splits_of(drives, tmp_path, short) == ["train", "held_out"]
        # Neither the last drive nor the first can be used: both splits come from what can.
        for name in ("a", "c"):
            real.write_plain(drives / name, real.Drive(4))
        assert splits_of(drives, tmp_path, short) == ["train", "held_out"]
        assert "off-policy" not in caplog.text
        assert splits_of(drives, tmp_path, replace(CUT, seconds=7.0)) == ["train"]
    assert "none is held out: the off-policy error cannot be measured" in caplog.text


def test_an_import_replaces_its_own_result_and_no_other(drives, tmp_path):
    path = tmp_path / "drives.parquet"
    config = ImportRun(path=path, source=Plain(folder=drives / "a"), cut=CUT)
    run(config, tmp_path)
    run(config, tmp_path)
    kept = path.read_bytes()
    for other in (
        replace(config, source=Plain(folder=drives / "b")),
        replace(config, source=Plain(folder=drives)),
        replace(config, cut=replace(CUT, quality=50)),
        replace(config, depth_from_motion=True),
    ):
        with pytest.raises(
            ValueError, match=r"drives.parquet holds other drives, .* give another path=, or remove"
        ):
            run(other, tmp_path)
    assert path.read_bytes() == kept
    write_segments(path, [open_dataset(path)[0]])
    with pytest.raises(ValueError, match="of unknown source, where this is drive import plain a"):
        run(config, tmp_path)
    path.write_bytes(kept[:1000])
    with pytest.raises(ValueError, match=r"not a readable .* to import anew, give another path="):
        run(config, tmp_path)
    assert path.read_bytes() == kept[:1000]
