"""One camera frame as bytes: colour in JPEG or WebP, depth in a lossless PNG of centimetres.

Depth may be coarser than colour by a whole factor. JPEGs keep colour at full size (4:4:4): halved,
as is usual, a lane line bleeds into the road beside it, which no camera's true image does.

It does not know which segment a frame belongs to; `segments` adds that to the errors.
"""

import cv2
import numpy as np

UNKNOWN, SKY = 0, 65535  # depth codes; everything between is centimetres
JPEG_QUALITY = 90
SAME_SURFACE = 0.8  # inverse depths above this share of the nearest one are averaged with it


class FrameError(ValueError):
    """An encoded frame is damaged or of the wrong size."""


def encode_image(image: np.ndarray, *, quality: int = JPEG_QUALITY) -> bytes:
    """Turn uint8 (3, H, W) RGB into JPEG bytes."""
    bgr = np.ascontiguousarray(image.transpose(1, 2, 0)[..., ::-1])
    whole_colour = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    done, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality, *whole_colour])
    assert done
    return encoded.tobytes()


def decode_image(encoded: bytes, width: int, height: int) -> np.ndarray:
    """Turn JPEG or WebP bytes into uint8 (3, H, W) RGB; FrameError when damaged or mis-sized."""
    bgr = _decode(encoded, cv2.IMREAD_COLOR)
    if bgr.shape[:2] != (height, width):
        raise _wrong_size(bgr, f"{width} x {height}")
    return np.ascontiguousarray(bgr[..., ::-1].transpose(2, 0, 1))


def encode_depth(depth: np.ndarray) -> bytes:
    """Turn float (H, W) metres (NaN unknown, inf sky) into PNG bytes; more than 655 m is sky."""
    centimetres = np.nan_to_num(depth * 100.0, nan=UNKNOWN, posinf=SKY).round()
    code = np.where(np.isnan(depth), UNKNOWN, np.clip(centimetres, 1, SKY)).astype(np.uint16)
    done, encoded = cv2.imencode(".png", code, [cv2.IMWRITE_PNG_COMPRESSION, 6])
    assert done
    return encoded.tobytes()


def shrink_depth(depth: np.ndarray, factor: int) -> np.ndarray:
    """Make a depth map (H, W) in metres `factor` times smaller: the nearest surface of each cell.

    Averaged is inverse depth, which is linear on the image of a plane.
    """
    # Cell by cell: along axes of two elements NumPy reduces some ten times slower.
    with np.errstate(divide="ignore"):
        inverse = 1 / depth
        cells = [inverse[i::factor, j::factor] for i in range(factor) for j in range(factor)]
        least = SAME_SURFACE * np.maximum.reduce(cells)
        same = [cell >= least for cell in cells]
        total = sum(cell * is_near for cell, is_near in zip(cells, same, strict=True))
        return np.add.reduce(same, dtype=np.float32) / total


def decode_depth(encoded: bytes, width: int, height: int) -> np.ndarray:
    """Turn PNG bytes into float32 metres; FrameError when damaged or of another kind.

    The result is (height, width) or smaller by a whole factor.
    """
    code = _decode(encoded, cv2.IMREAD_UNCHANGED)
    factor = width // code.shape[1] or 1
    if (factor * code.shape[0], factor * code.shape[1]) != (height, width):
        raise _wrong_size(code, f"{width} x {height}, or a whole fraction of it")
    if code.dtype != np.uint16 or code.ndim != 2:
        raise FrameError("is not one channel of 16 bits")
    depth = code.astype(np.float32) / 100.0
    depth[code == UNKNOWN] = np.nan
    depth[code == SKY] = np.inf
    return depth


def _decode(encoded: bytes, flags: int) -> np.ndarray:
    # OpenCV fills the rest of a truncated file with grey and says nothing: look at the ends first.
    pixels = None
    if _is_whole(encoded):
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    if pixels is None:
        raise FrameError(f"is damaged ({len(encoded)} bytes)")
    return pixels


def _wrong_size(pixels: np.ndarray, wanted: str) -> FrameError:
    size = f"{pixels.shape[1]} x {pixels.shape[0]}"
    return FrameError(f"is {size} pixels; its camera says {wanted}")


def _is_whole(encoded: bytes) -> bool:
    """Tell whether the bytes begin and end as a JPEG, PNG or WebP file does."""
    if encoded[:2] == b"\xff\xd8":
        return encoded[-2:] == b"\xff\xd9"
    if encoded[:8] == b"\x89PNG\r\n\x1a\n":
        return encoded[-8:-4] == b"IEND"
    is_riff = encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP"
    return is_riff and int.from_bytes(encoded[4:8], "little") + 8 <= len(encoded)
