"""Frames of a video by their number, and which of them are damaged.

A frame's number is its place in the order of presentation. A frame is damaged when its packet does
not decode, when the decoder complains of it or marks it as corrupt, and from there on until the
next key frame, since the frames between are made from it. What a decoder does not notice is not
noticed here: H.265 often conceals a few wrong bytes inside a packet without a word.

A bare stream (.hevc) has no time stamps: its packets are counted. Where it has fewer than it should
and something is damaged, packets may be gone, and no frame after the damage has a number.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import av.logging
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

from drive_envs.recording import Fault, Pixels, RecordingError

CAUSE = "damaged video"
END = 1 << 60  # a number after all others


class Video:
    """A video file, which should have `num_frames` if that is known.

    Raises RecordingError when it cannot be opened or shows nothing.
    """

    def __init__(self, path: Path, num_frames: int | None = None) -> None:
        self.path = path
        try:
            with av.open(str(path)) as container:
                stream = _stream(container, path)
                self.width, self.height = stream.width, stream.height
                packets = [packet for packet in container.demux(stream) if packet.size]
                stamps = [packet.pts for packet in packets]
        except (FFmpegError, OSError) as error:
            raise RecordingError(path, "unreadable video", str(error)) from error
        if not packets:
            raise RecordingError(path, "video without frames")
        known = [stamp for stamp in stamps if stamp is not None]
        has_stamps = len(set(known)) == len(stamps)
        order = np.argsort(np.argsort(known)) if has_stamps else np.arange(len(stamps))
        self._numbers = [int(number) for number in order]
        self._is_counted = has_stamps or len(stamps) == num_frames

    def __len__(self) -> int:
        return len(self._numbers)

    def frames(self, wanted: Sequence[int]) -> Iterator[Pixels | Fault]:
        """Decode frames of rising numbers, RGB, in one pass; a Fault for those that are damaged."""
        found = self._decode()
        held: tuple[int, Pixels | None, str] | None = None
        for number in wanted:
            while held is None or held[0] < number:
                held = next(found, (END, None, ""))
            _, pixels, why = held
            if held[0] != number:
                pixels, why = None, "the decoder left it out"
            if number >= len(self):
                why = "the video ends before it"
            yield (
                pixels
                if pixels is not None
                else Fault(cause=CAUSE, file=self.path, first=number, last=number, detail=why)
            )

    def _decode(self) -> Iterator[tuple[int, Pixels | None, str]]:
        """Yield number, pixels (None where damaged) and what is wrong, numbers rising."""
        av.logging.set_level(av.logging.ERROR)
        trouble: list[str] = []  # with each packet so far
        damaged: dict[int, str] = {}
        with av.open(str(self.path)) as container:
            stream = _stream(container, self.path)
            # With threads a complaint could not be told to be of this packet.
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            for packet in container.demux(stream):
                number = self._numbers[len(trouble)] if packet.size else END
                if packet.size:
                    packet.pts, packet.dts = number, len(trouble)
                images, complaint = _decoded(packet)
                if packet.size:
                    before = "" if packet.is_keyframe or not trouble else trouble[-1]
                    trouble.append(complaint or before)
                    if complaint or before:
                        damaged[number] = complaint or before
                is_lost = not self._is_counted and bool(damaged)
                for image in images:
                    assert image.pts is not None
                    at = int(image.pts)
                    why = damaged.get(at, "marked as corrupt" if image.is_corrupt else "")
                    if is_lost and at > min(damaged):
                        why = why or "not counted, as packets before it may be gone"
                    if image.is_corrupt and trouble:
                        trouble[-1] = trouble[-1] or why
                        damaged[at] = why
                    yield at, None if why else image.to_ndarray(format="rgb24"), why


def _stream(container: InputContainer, path: Path) -> VideoStream:
    if not container.streams.video:
        raise RecordingError(path, "no video in it")
    return container.streams.video[0]


def _decoded(packet: Packet) -> tuple[list[av.VideoFrame], str]:
    """Decode a packet; return its frames and what the decoder complained of."""
    with av.logging.Capture(local=False) as log:
        try:
            images = packet.decode()
        except FFmpegError as error:
            return [], str(error)
    return images, log[0][2].strip() if log else ""
