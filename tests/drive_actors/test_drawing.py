import av
import cv2
import numpy as np

from drive_actors.drawing import draw_rollout
from drive_actors.rollout import collect
from drive_envs.drawing import write_sheet, write_video


def test_a_rollout_becomes_a_video(stripes_env, tiny_policy, tmp_path):
    rollout = collect(
        stripes_env(), tiny_policy, version=0, actor=0, seed=0, num_steps=8, deterministic=False
    )
    pictures = draw_rollout(rollout, tiny_policy, scene=1)
    assert len(pictures) == rollout.active[:, 1].sum()
    write_video(tmp_path / "rollout.mp4", pictures)
    with av.open(str(tmp_path / "rollout.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 5
    assert len(frames) == len(pictures)
    assert np.abs(frames[0].astype(int) - pictures[0]).mean() < 20
    write_sheet(tmp_path / "rollout.png", pictures)
    sheet = cv2.imread(str(tmp_path / "rollout.png"))
    assert sheet is not None
    assert (sheet[:64, :, ::-1] == pictures[0]).all()
    assert (sheet[-64:, :, ::-1] == pictures[-1]).all()
