import json
import pickle
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from drive_envs.camera import cameras
from drive_envs.frames import (
    FrameError,
    decode_depth,
    encode_depth,
    encode_image,
    shrink_depth,
)
from drive_envs.segments import (
    Segment,
    SegmentError,
    SegmentFile,
    open_dataset,
    write_segments,
)

WIDTH, HEIGHT = 32, 16


def make_segment(name="drive-0", split="train", num_frames=6, seed=0, **changes):
    generator = np.random.default_rng(seed)
    views = cameras(WIDTH, HEIGHT)
    smooth = np.linspace(20, 200, 3 * HEIGHT * WIDTH).reshape(3, HEIGHT, WIDTH)
    depth = np.linspace(1.0, 80.0, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.float32)
    depth[0], depth[1, 0] = np.inf, np.nan
    fields = {
        "name": name,
        "split": split,
        "cameras": views,
        "time": 0.2 * np.arange(num_frames),
        "position": generator.normal(size=(num_frames, 3)),
        "quaternion": np.tile([0.0, 0.0, 0.0, 1.0], (num_frames, 1)),
        "velocity": generator.normal(size=(num_frames, 3)),
        "desire": np.eye(num_frames, dtype=np.int8)[2],
        "valid": np.arange(num_frames) > 0,
        "images": {
            c: [encode_image((smooth + i).astype(np.uint8)) for i in range(num_frames)]
            for c in views
        },
        "depths": {c: [encode_depth(depth + i) for i in range(num_frames)] for c in views},
        "source": json.dumps({"simulator": "none", "road": name}),
    }
    return Segment(**{**fields, **changes})


def without_depth(segment):
    return replace(segment, depths={c: [None] * len(segment) for c in segment.cameras})


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "drives.parquet"
    written = [make_segment("a"), make_segment("b", "held_out", num_frames=4, seed=1)]
    assert write_segments(path, iter(written), source="test") == 2
    dataset = open_dataset(path)
    assert not dataset.skipped
    for index, before in enumerate(written):
        after = dataset[index]
        for column in ("time", "position", "quaternion", "velocity", "desire", "valid"):
            np.testing.assert_array_equal(getattr(after, column), getattr(before, column))
        assert (after.name, after.split, after.source) == (before.name, before.split, before.source)
        assert after.cameras == before.cameras
        for kind in ("images", "depths"):
            frames = {camera: list(found) for camera, found in getattr(after, kind).items()}
            assert frames == getattr(before, kind)
    assert [s.name for s in open_dataset(tmp_path, "held_out")] == ["b"]
    assert pq.ParquetFile(path).num_row_groups == 2


def test_frames_are_decoded_in_colour_and_metres():
    segment = make_segment()
    assert segment.image("wide", 3).shape == (3, HEIGHT, WIDTH)
    expected = np.linspace(20, 200, 3 * HEIGHT * WIDTH).reshape(3, HEIGHT, WIDTH) + 3
    assert np.abs(segment.image("wide", 3) - expected).max() < 12
    depth = segment.depth("narrow", 0)
    assert depth.dtype == np.float32
    assert np.isinf(depth[0]).all()
    assert np.isnan(depth[1, 0])
    np.testing.assert_allclose(
        depth[2:], np.linspace(1, 80, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)[2:], atol=0.0051
    )


def test_depth_may_be_coarser_by_a_whole_factor():
    depth = np.array([[4.0, 4.0, 10.0, np.inf], [4.0, 20.0, 10.0, np.inf]], np.float32)
    coarse = shrink_depth(depth, 2)
    np.testing.assert_allclose(coarse, [[4.0, 10.0]], rtol=1e-6)  # the nearest surface
    np.testing.assert_allclose(decode_depth(encode_depth(coarse), 4, 2), coarse, atol=0.0051)
    with pytest.raises(FrameError, match=r"2 x 1 pixels; its camera says 5 x 2, or a whole"):
        decode_depth(encode_depth(coarse), 5, 2)


def test_depth_codes_cover_the_whole_range():
    depth = np.array([[0.0, 0.001, 1.0, 655.34, 655.36, 1e9, np.inf, np.nan]], np.float32)
    np.testing.assert_allclose(
        decode_depth(encode_depth(depth), 8, 1)[0],
        [0.01, 0.01, 1.0, 655.34, np.inf, np.inf, np.inf, np.nan],
        rtol=1e-6,
    )


def test_a_segment_without_depth_says_so(tmp_path):
    path = tmp_path / "drives.parquet"
    write_segments(path, [without_depth(make_segment())])
    segment = open_dataset(path)[0]
    with pytest.raises(
        SegmentError,
        match=r"drives.parquet: segment 'drive-0' row 2: has no depth of camera 'narrow'",
    ):
        segment.depth("narrow", 2)


def test_a_missing_depth_column_is_no_depth(tmp_path):
    path = tmp_path / "drives.parquet"
    write_segments(path, [make_segment()])
    pq.write_table(pq.read_table(path).drop_columns(["depth_narrow"]), path)
    segment = open_dataset(path)[0]
    assert segment.depth("wide", 0).shape == (HEIGHT, WIDTH)
    with pytest.raises(SegmentError, match="row 0: has no depth of camera 'narrow'"):
        segment.depth("narrow", 0)


def test_a_missing_column_is_named(tmp_path):
    path = tmp_path / "drives.parquet"
    write_segments(path, [make_segment()])
    pq.write_table(pq.read_table(path).drop_columns(["velocity", "image_wide"]), path)
    with pytest.raises(SegmentError, match=r"damaged file: drives\.parquet"):
        open_dataset(path)


def test_a_missing_file_or_split_is_named(tmp_path):
    with pytest.raises(SegmentError, match="nowhere: no such file or folder"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(SegmentError, match=r"holds no \.parquet file"):
        open_dataset(tmp_path)
    write_segments(tmp_path / "drives.parquet", [make_segment()])
    with pytest.raises(SegmentError, match="no segment of split 'held_out'"):
        open_dataset(tmp_path, "held_out")
    with pytest.raises(SegmentError, match="split is 'test'; it must be one of train, held_out"):
        open_dataset(tmp_path, "test")


def test_a_damaged_file_is_skipped_and_counted(tmp_path, caplog):
    write_segments(tmp_path / "good.parquet", [make_segment()])
    whole = (tmp_path / "good.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.parquet").write_text("hello")
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 1
    assert dataset.skipped == {"damaged file: cut.parquet": 1, "damaged file: text.parquet": 1}
    assert "cut.parquet: not a readable Parquet file of segments" in caplog.text
    with pytest.raises(SegmentError, match=r"damaged file: text\.parquet"):
        open_dataset(tmp_path / "text.parquet")


def test_a_damaged_row_group_is_skipped_and_the_others_are_read(synthetic, tmp_path, caplog):
    path = tmp_path / "drives.parquet"
    write_segments(path, [make_segment(name, seed=i) for i, name in enumerate("abc")])
    synthetic.damage(path, group=1, column="image_wide")
    dataset = open_dataset(path)
    assert [segment.name for segment in dataset] == ["a", "b", "c"]
    dataset[1].depths["wide"][0]
    for row in (0, 5):
        with pytest.raises(SegmentError, match="segment number 1, from row 6: damaged row group"):
            dataset[1].images["wide"][row]
    assert not dataset.skipped
    dataset.leave_out_damaged()
    assert [segment.name for segment in dataset] == ["a", "c"]
    assert dataset.skipped == {"damaged segment: drives.parquet": 1}
    assert "segment number 1, from row 6: damaged row group" in caplog.text


def test_numbers_that_are_damaged_are_found_on_opening(synthetic, tmp_path):
    path = tmp_path / "drives.parquet"
    write_segments(path, [make_segment(name, seed=i) for i, name in enumerate("abc")])
    synthetic.damage(path, group=1, column="position")
    dataset = open_dataset(path)
    assert [segment.name for segment in dataset] == ["a", "c"]
    assert dataset.skipped == {"damaged segment: drives.parquet": 1}


def test_frames_are_read_when_they_are_asked_for_and_once(tmp_path, monkeypatch):
    path = tmp_path / "drives.parquet"
    segment = make_segment()
    write_segments(path, [segment])
    read = []
    columns = SegmentFile.columns
    monkeypatch.setattr(
        SegmentFile, "columns", lambda *given: read.append(given[-1]) or columns(*given)
    )
    found = open_dataset(path)[0]
    assert not [name for names in read for name in names if "_" in name]
    for row in (3, 4):
        np.testing.assert_array_equal(
            found.mirrored().image("wide", row), segment.mirrored().image("wide", row)
        )
    found.load()
    assert [names for names in read if "_" in names[0]] == [
        ["image_wide"],
        ["image_narrow"],
        ["depth_narrow"],
        ["depth_wide"],
    ]


def test_a_segment_can_be_sent_to_another_process(tmp_path):
    path = tmp_path / "drives.parquet"
    write_segments(path, [make_segment()])
    sent = pickle.loads(pickle.dumps(open_dataset(path)[0]))
    path.unlink()
    assert sent.image("wide", 2).shape == (3, HEIGHT, WIDTH)


def test_a_damaged_image_is_named_by_file_segment_and_row(tmp_path):
    path = tmp_path / "drives.parquet"
    segment = make_segment()
    images, depths = (
        {camera: list(frames) for camera, frames in kind.items()}
        for kind in (segment.images, segment.depths)
    )
    images["wide"][4] = images["wide"][4][:-20]
    images["narrow"][1] = encode_image(np.zeros((3, 8, 8), np.uint8))
    depths["narrow"][3] = b"not an image"
    write_segments(path, [replace(segment, images=images, depths=depths)])
    segment = open_dataset(path)[0]
    with pytest.raises(
        SegmentError, match=r"drives.parquet: segment 'drive-0' row 4: image 'wide' is damaged"
    ):
        segment.image("wide", 4)
    with pytest.raises(
        SegmentError, match=r"row 1: image 'narrow' is 8 x 8 pixels; its camera says 32 x 16"
    ):
        segment.image("narrow", 1)
    with pytest.raises(SegmentError, match=r"row 3: depth 'narrow' is damaged"):
        segment.depth("narrow", 3)
    with pytest.raises(SegmentError, match="no camera 'rear'; it has narrow, wide"):
        segment.image("rear", 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test"}, "split is 'test'"),
        ({"time": np.zeros(6)}, "row 1: time does not increase"),
        ({"velocity": np.zeros((6, 2))}, r"'velocity' has shape \(6, 2\)"),
        ({"position": np.full((6, 3), np.nan)}, "row 0: 'position' is not finite"),
        ({"images": {"narrow": [b""] * 6}}, "images are"),
    ],
)
def test_inconsistent_segments_are_refused(changes, message):
    with pytest.raises(SegmentError, match=message):
        make_segment(**changes)


def test_an_interrupted_writer_leaves_what_was_there(tmp_path):
    path = tmp_path / "drives.parquet"
    write_segments(path, [make_segment("before")])

    def interrupted():
        yield make_segment("a")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_segments(path, interrupted())
    with pytest.raises(SegmentError, match="there is no segment to write"):
        write_segments(path, [])
    assert [segment.name for segment in open_dataset(path)] == ["before"]
    assert [file.name for file in tmp_path.iterdir()] == ["drives.parquet"]


def test_segments_of_one_file_share_their_cameras(tmp_path):
    other = make_segment("b")
    other = replace(other, cameras={c: replace(v, focal=1.0) for c, v in other.cameras.items()})
    with pytest.raises(
        SegmentError, match="'b': its cameras differ from those of segment 'drive-0'"
    ):
        write_segments(tmp_path / "drives.parquet", [make_segment(), other])
    assert not list(tmp_path.iterdir())
