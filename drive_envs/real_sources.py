"""Where real drives come from: one of three layouts on the disk, told apart by `kind`."""

from collections.abc import Callable
from pathlib import Path

from drive_envs.comma2k19 import Comma2k19, comma_folders, comma_recording
from drive_envs.kitti_raw import KittiRaw, kitti_folders, kitti_recording
from drive_envs.plain_drive import Plain, plain_folders, plain_recording
from drive_envs.recording import Recording

Source = Comma2k19 | KittiRaw | Plain


def folders_of(source: Source) -> list[Path]:
    """Find the drives; ValueError when the folder does not exist or holds none."""
    find: Callable[[Path], list[Path]]
    match source:
        case Comma2k19():
            find, wanted = comma_folders, "a video.hevc beside a global_pose folder"
        case KittiRaw():
            find, wanted = kitti_folders, "an oxts and an image folder"
        case Plain():
            folders = plain_folders(source)
            find, wanted = (lambda _: folders), f"'{source.poses}' beside '{source.images}'"
    if not source.folder.exists():
        raise ValueError(f"{source.folder}: no such folder; source.folder=PATH says where it is")
    if not (found := find(source.folder)):
        raise ValueError(
            f"{source.folder}: no drive of kind '{source.kind}' in it: a drive has {wanted}"
        )
    return found


def recording_of(source: Source, folder: Path) -> Recording:
    """Open one drive. RecordingError when it cannot be read."""
    match source:
        case Comma2k19():
            return comma_recording(source, folder)
        case KittiRaw():
            return kitti_recording(source, folder)
        case Plain():
            return plain_recording(source, folder)
