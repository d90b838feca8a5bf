import numpy as np
import pytest

from drive_envs.recording import Fault, RecordingError
from drive_envs.video import Video


def pictures(count=40):
    """Grey frames, each brighter than the one before, with some grain."""
    grain = np.random.default_rng(0).integers(-15, 16, (64, 96, 1))
    grey = 20 + 5 * np.arange(count)[:, None, None, None] + grain
    return list(np.repeat(grey, 3, axis=-1).clip(0, 255).astype(np.uint8))


def shade(pixels):
    return (float(pixels.mean()) - 20) / 5


@pytest.fixture(scope="module", params=[("libx265", "hevc"), ("libx264", "mp4")])
def video(request, real, tmp_path_factory):
    codec, form = request.param
    path = tmp_path_factory.mktemp("video") / f"video.{form}"
    real.write_video(path, pictures(), codec, form)
    return path


def test_frames_are_found_by_their_number(video):
    film = Video(video)
    assert (len(film), film.width, film.height) == (40, 96, 64)
    wanted = [0, 3, 4, 17, 39]
    shades = [shade(pixels) for pixels in film.frames(wanted)]
    np.testing.assert_allclose(shades, wanted, atol=0.45)


def test_a_video_that_ends_too_soon_says_where(video):
    found = list(Video(video).frames([39, 40, 45]))
    assert not isinstance(found[0], Fault)
    assert [str(fault) for fault in found[1:]] == [
        f"{video}: frame {n}: damaged video (the video ends before it)" for n in (40, 45)
    ]


def check_damage(path, num_frames):
    """Return the numbers that are refused; what is handed out must be what it says."""
    found = list(Video(path, num_frames).frames(range(40)))
    for number, frame in enumerate(found):
        if isinstance(frame, Fault):
            assert frame.cause == "damaged video"
        else:
            assert abs(shade(frame) - number) < 0.45
    return {i for i, frame in enumerate(found) if isinstance(frame, Fault)}


def test_damage_lasts_to_the_next_key_frame(real, tmp_path):
    path = tmp_path / "video.mp4"
    real.write_video(path, pictures(), "libx264", "mp4")
    data = bytearray(path.read_bytes())
    position, size = real.packets(path)[real.packet_of(path, 13)]
    data[position + 8 : position + size] = bytes(size - 8)
    path.write_bytes(data)
    refused = check_damage(path, 40)
    assert 13 in refused
    # Frames between may depend on it; the next group of pictures does not.
    assert refused <= set(range(10, 20))


def test_what_comes_after_a_lost_packet_of_a_bare_stream_has_no_number(real, tmp_path):
    path = tmp_path / "video.hevc"
    real.write_video(path, pictures())
    data = bytearray(path.read_bytes())
    start = sum(size for _, size in real.packets(path)[:13])
    del data[start : start + real.packets(path)[13][1]]
    path.write_bytes(data)
    refused = check_damage(path, 40)
    assert set(range(13, 40)) <= refused
    assert refused.isdisjoint(range(12))


def test_what_is_no_video_is_named(tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(RecordingError, match=r"text.mp4: unreadable video"):
        Video(tmp_path / "text.mp4")
    with pytest.raises(RecordingError, match=r"none.mp4: unreadable video"):
        Video(tmp_path / "none.mp4")
