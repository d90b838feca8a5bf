import json
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.config import load
from cluster.jobs import RUNS
from cluster.record import RecordRun, part, recorded_before, results, run
from drive_envs.camera import cameras
from drive_envs.frames import encode_depth, encode_image
from drive_envs.metadrive_assets import assets_missing
from drive_envs.random_roads import RoadsConfig
from drive_envs.scenarios import load_scenarios
from drive_envs.segment import Segment
from drive_envs.segments import open_dataset, sample_path, write_segments


def tiny(tmp_path, **changes):
    return RecordRun(
        **{
            "path": tmp_path / "drives.parquet",
            "num_segments": 3,
            "seconds": 2.0,
            "width": 64,
            "height": 32,
            "held_out_fraction": 0.34,
            "roads": RoadsConfig(region=512),
            **changes,
        }
    )


def segment(number, split):
    rows, views = 10, cameras(64, 32)
    return Segment(
        name=f"drive-{number:05d}",
        split=split,
        cameras=views,
        time=0.2 * np.arange(rows),
        position=np.zeros((rows, 3)),
        quaternion=np.tile([0.0, 0.0, 0.0, 1.0], (rows, 1)),
        velocity=np.zeros((rows, 3)),
        desire=np.zeros(rows, np.int8),
        valid=np.ones(rows, bool),
        images={c: [encode_image(np.zeros((3, 32, 64), np.uint8))] * rows for c in views},
        depths={c: [encode_depth(np.full((32, 64), 5.0))] * rows for c in views},
    )


@pytest.mark.slow
@pytest.mark.skipif(assets_missing(), reason="MetaDrive's assets: run cluster/setup.sh")
def test_drives_are_recorded_and_merged(tmp_path):
    config = tiny(tmp_path, num_segments=2, held_out_fraction=0.5, num_processes=1)
    figures = run(config, tmp_path)
    assert (figures["segments"], figures["held_out"], figures["frames"]) == (2, 1, 20)
    assert figures["frames_per_second"] > 0
    assert figures["megabytes_per_minute"] > 0
    assert not config.parts.exists()
    dataset = open_dataset(config.path)
    assert [s.name for s in dataset] == ["drive-00000", "drive-00001"]
    for drive in dataset:
        for camera in drive.cameras:
            assert drive.image(camera, 5).std() > 10
            assert 2.0 < np.nanmin(drive.depth(camera, 5)) < 12.0
        speed = np.linalg.norm(drive.velocity, axis=1)
        moved = np.linalg.norm(np.diff(drive.position, axis=0), axis=1)
        np.testing.assert_allclose(moved, 0.2 * speed[:-1], atol=0.2)
        assert json.loads(drive.source)["road"]


def test_finished_drives_are_kept_and_merged(tmp_path):
    config = tiny(tmp_path)
    for number in range(config.num_segments):
        write_segments(part(config, number), [segment(number, config.split(number))])
    figures = run(config, tmp_path)
    assert figures["frames_per_second"] is None
    assert [s.split for s in open_dataset(config.path)] == ["train", "train", "held_out"]


def test_who_wants_more_keeps_what_is_there_and_nothing_else_is_replaced(tmp_path):
    config = tiny(tmp_path)
    for number in range(config.num_segments):
        write_segments(part(config, number), [segment(number, config.split(number))])
    run(config, tmp_path)
    written = config.path.stat().st_mtime_ns
    assert run(config, tmp_path)["frames_per_second"] is None
    assert config.path.stat().st_mtime_ns == written
    more = replace(config, num_segments=4)
    more.parts.mkdir()
    write_segments(part(more, 3), [segment(3, more.split(3))])
    assert run(more, tmp_path)["frames_per_second"] is None  # none was driven again
    names = [s.name for s in open_dataset(config.path)]
    assert names == [f"drive-{number:05d}" for number in range(4)]
    assert recorded_before(replace(more, path=tmp_path / "none.parquet")) is None
    kept = config.path.read_bytes()
    with pytest.raises(
        ValueError, match=r"drives.parquet holds 4 drives, more than num_segments=2"
    ):
        run(replace(config, num_segments=2), tmp_path)
    with pytest.raises(ValueError, match=r"holds recordings of another run .*give another path="):
        run(replace(more, seed=1), tmp_path)
    assert config.path.read_bytes() == kept
    config.path.write_bytes(kept[:1000])
    with pytest.raises(ValueError, match=r"drives.parquet.*give another path=, or remove it"):
        run(more, tmp_path)
    assert len(config.path.read_bytes()) == 1000


def test_parts_belong_to_one_run():
    config = RecordRun()
    assert config.parts == replace(config, num_segments=7, num_processes=1).parts
    others = [
        replace(config, seed=1),
        replace(config, width=64, height=32),
        replace(config, seconds=9),
    ]
    assert len({run.parts for run in [config, *others]}) == 4


def test_a_dead_process_is_one_sentence():
    future = Future()
    future.set_exception(BrokenProcessPool())
    with pytest.raises(ValueError, match=r"a recording process died .* finished drives are kept"):
        list(results([future]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_segments": 0}, "num_segments must be at least 1, got 0"),
        ({"path": Path("data")}, r"path must end in .parquet, got data"),
        ({"held_out_fraction": 2.0}, "held_out_fraction must be 0 to 1, got 2"),
        ({"width": 100}, "aspect ratio"),
    ],
)
def test_mistakes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RecordRun(**changes)


@pytest.mark.parametrize("name", ["record", "record_sample"])
def test_shipped_runs_load(name):
    assert load(RecordRun, RUNS / f"{name}.yaml").width == 128


def test_the_sample_is_what_its_run_says():
    config = load(RecordRun, RUNS / "record_sample.yaml")
    assert sample_path().stat().st_size <= 25e6
    dataset = open_dataset(sample_path())
    assert not dataset.skipped
    assert len(dataset) == config.num_segments >= 20
    assert len(open_dataset(sample_path(), "held_out")) >= 4
    scenarios = {scenario.road.fingerprint() for scenario in load_scenarios()}
    for drive in dataset:
        assert json.loads(drive.source)["road"] not in scenarios
        assert drive.image("narrow", len(drive) - 1).shape == (3, 128, 384)
        assert drive.depth("wide", 0).shape == (64, 192)
        assert np.isfinite(drive.depth("wide", 0)).any()
