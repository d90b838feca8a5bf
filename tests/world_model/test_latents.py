from dataclasses import replace

import numpy as np
import pytest
import torch

from world_model.autoencoder import AutoencoderConfig
from world_model.encoding import EncodingConfig, encode_segment, images_as_recorded
from world_model.latents import LatentDrive, LatentFile, LatentsError, LatentsInfo, write_latents
from world_model.tokenizer import Tokenizer
from world_model.windows import WindowConfig, WindowSampler

INFO = LatentsInfo(shape=(4, 1, 2), num_variants=2, tokenizer="abc", source="a test")


def make_drive(name="a", num_frames=20, split="train", seed=0):
    rng = np.random.default_rng(seed)
    shape = (2, num_frames)
    return LatentDrive(
        name=name,
        split=split,
        latents=rng.normal(size=(*shape, 4, 1, 2)).astype(np.float16),
        moved=rng.normal(size=(*shape, 4, 1, 2)).astype(np.float16),
        poses=rng.normal(size=(*shape, 3)),
        lateral=rng.normal(size=shape).astype(np.float32),
        plans=rng.normal(size=(*shape, 33, 15)).astype(np.float32),
        valid=rng.random((*shape, 33)) < 0.5,
    )


@pytest.fixture
def path(tmp_path):
    drives = [make_drive("a", 20), make_drive("b", 12, "held_out", 1), make_drive("c", 16, seed=2)]
    assert write_latents(tmp_path / "latents.parquet", INFO, drives) == 3
    return tmp_path / "latents.parquet"


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return Tokenizer(
        AutoencoderConfig(latent_channels=4, channels=(16, 16, 16), num_blocks=1)
    ).eval()


def test_drives_come_back(path):
    file = LatentFile(path)
    assert file.info == INFO
    assert (file.splits, file.num_frames) == (["train", "held_out", "train"], [20, 12, 16])
    for group, expected in enumerate([make_drive(), make_drive("b", 12, "held_out", 1)]):
        found = file[group]
        assert (found.name, found.split) == (expected.name, expected.split)
        for part in ("latents", "moved", "poses", "lateral", "plans", "valid"):
            np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))


def test_a_file_without_moved_frames_is_smaller_and_has_zeros(path, tmp_path):
    without = tmp_path / "without.parquet"
    info = replace(INFO, has_moved=False)
    write_latents(without, info, [make_drive()])
    file = LatentFile(without)
    assert file.info == info
    np.testing.assert_array_equal(file[0].latents, make_drive().latents)
    assert file[0].moved.shape == make_drive().moved.shape
    assert not file[0].moved.any()
    with_them = {name.rpartition("_")[0] for name in LatentFile(path)._file.schema_arrow.names}
    assert with_them - {name.rpartition("_")[0] for name in file._file.schema_arrow.names} == {
        "moved"
    }


def test_little_memory_changes_nothing(path):
    ample, scarce = LatentFile(path), LatentFile(path, cache_mb=0)
    for group in (0, 2, 1, 0, 2):
        np.testing.assert_array_equal(ample[group].latents, scarce[group].latents)
    assert len(scarce._drives) == 1
    assert len(ample._drives) == 3


def test_what_is_wrong_is_named(path, tmp_path):
    with pytest.raises(LatentsError, match=r"no.parquet: not a readable Parquet file of latents"):
        LatentFile(tmp_path / "no.parquet")
    with pytest.raises(LatentsError, match="drive 'a' has 2 variants of latents"):
        write_latents(tmp_path / "x.parquet", replace(INFO, num_variants=3), [make_drive()])
    with pytest.raises(LatentsError, match="no drive to write"):
        write_latents(tmp_path / "x.parquet", INFO, [])
    assert not list(tmp_path.glob("*x.parquet*"))
    content = bytearray(path.read_bytes())
    content[3000] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(LatentsError, match="is damaged"):
        [LatentFile(path)[group] for group in range(3)]


def sampler(path, split="train", **options):
    config = WindowConfig(max_wait=4, **options)
    return WindowSampler(LatentFile(path), split, config, num_frames=6, num_anchors=2)


def test_a_window_depends_on_seed_step_and_number_alone(path):
    both = sampler(path).minibatch(1, 7, [0, 1, 2, 3])
    one = sampler(path).minibatch(1, 7, [1, 3])
    for part, alone in zip(both, one, strict=True):
        torch.testing.assert_close(part[[1, 3]], alone)
    assert not torch.equal(both.frames, sampler(path).minibatch(1, 8, [0, 1, 2, 3]).frames)


def test_frames_leave_the_path_and_anchors_do_not(path):
    """Every window is found again in its drive: frames of either variant, anchors as recorded."""
    drives = [make_drive(), make_drive("c", 16, seed=2)]
    seen, waits = set(), set()
    for step in range(60):
        window = sampler(path, anchor_dropout=0.0).minibatch(0, step, [0])
        first = window.poses[0, 0].numpy()
        (drive, variant, row), *more = [
            (drive, variant, row)
            for drive in drives
            for variant in range(2)
            for row in range(len(drive))
            if (drive.poses[variant, row] == first).all()
        ]
        assert not more
        wait = int(window.wait)
        np.testing.assert_array_equal(window.poses[0], drive.poses[variant, row : row + 6])
        ahead = slice(row + 5 + wait, row + 5 + wait + 2)
        np.testing.assert_array_equal(window.anchor_poses[0], drive.poses[0, ahead])
        np.testing.assert_array_equal(window.anchors[0], drive.latents[0, ahead].astype(np.float32))
        np.testing.assert_array_equal(window.plan[0], drive.plans[variant, row : row + 6])
        seen.add((drive.name, variant))
        waits.add(wait)
    assert seen == {("a", 0), ("a", 1), ("c", 0), ("c", 1)}
    assert waits == {1, 2, 3, 4}


def test_without_anchors_windows_are_as_recorded(path):
    window = sampler(path, anchor_dropout=1.0).minibatch(0, 0, range(40))
    assert window.anchors.shape[1] == 0
    recorded = [make_drive().poses[0], make_drive("c", 16, seed=2).poses[0]]
    rows = np.concatenate(recorded)
    assert all((rows == pose).all(1).any() for pose in window.poses[:, 0].numpy())


def test_fewer_drives_are_the_first_ones(path):
    window = sampler(path, num_drives=1).minibatch(0, 0, range(40))
    rows = np.concatenate(make_drive().poses)
    assert all((rows == pose).all(1).any() for pose in window.poses[:, 0].numpy())


def test_drives_that_are_too_short(path):
    with pytest.raises(ValueError, match="no drive of split 'held_out' has 16 frames"):
        WindowSampler(LatentFile(path), "held_out", WindowConfig(), num_frames=14, num_anchors=2)


def test_a_segment_becomes_drives_and_their_mirror_images(synthetic, tokenizer):
    segment = synthetic.segment_from_path(synthetic.arc_path(num_rows=16), width=32, height=16)
    config = EncodingConfig(num_excursions=2, precision="fp32")
    drive, mirrored = encode_segment(segment, tokenizer, config, 32, 16)
    assert (drive.name, mirrored.name) == ("synthetic/0", "synthetic/0-mirrored")
    assert drive.latents.shape == (3, 16, 4, 2, 4)
    images = images_as_recorded(segment, slice(0, 16), 32, 16)
    expected = tokenizer.encode(images).half().numpy()
    np.testing.assert_array_equal(drive.latents[0], expected)
    np.testing.assert_allclose(mirrored.poses[0, :, 1:], -drive.poses[0, :, 1:], atol=1e-9)
    assert not np.array_equal(mirrored.latents[0], drive.latents[0])
    np.testing.assert_allclose(np.abs(drive.lateral[0]).max(), 0.0)
    assert np.abs(drive.lateral[1:]).max() > 0.2
    again, _ = encode_segment(segment, tokenizer, config, 32, 16)
    np.testing.assert_array_equal(drive.latents, again.latents)
    tokenizer.standardise([images])
    rounded, exact = (
        next(encode_segment(segment, tokenizer, replace(config, precision=precision), 32, 16))
        for precision in ("bf16", "fp32")
    )
    assert np.abs(rounded.latents - exact.latents).mean() < 0.02


def test_plans_lead_back_onto_the_recorded_path(synthetic, tokenizer):
    path = synthetic.arc_path(num_rows=80, curvature=0.0)
    segment = synthetic.segment_from_path(path, width=32, height=16)
    (drive,) = encode_segment(segment, tokenizer, EncodingConfig(is_mirrored=False), 32, 16)
    assert not drive.valid[:, :9].any()
    for row in (15, 30):
        lateral, pose = drive.lateral[1, row], drive.poses[1, row]
        plan, valid = drive.plans[1, row], drive.valid[1, row]
        side = pose[1] + np.sin(pose[2]) * plan[:, 0] + np.cos(pose[2]) * plan[:, 1]
        assert side[0] == pytest.approx(lateral, abs=1e-5)
        assert abs(side[valid][-1]) < 0.15 * max(abs(lateral), 0.5)
        np.testing.assert_allclose(drive.plans[0, row][valid, 1], 0.0, atol=1e-4)
