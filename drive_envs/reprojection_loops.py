"""The steps of `reprojection` on a CPU: image after image, in loops that numba compiles.

An operation on tensors reads and writes whole maps of a batch, so that the warp there costs what
moving some hundred maps through the cache does. Here every step is done a row (of a source) or
`CHUNK` pixels (of the target) at a time. Loops are short, write one buffer and read few: more would
need more checks for overlap than LLVM is willing to make, and it would not vectorise them.

All numbers are float32, as on the GPU, also those of pixels, of which a map has 16 million at most.
Everything compiled is in this one file, since numba's cache on disk only notices when a function's
own file has changed.
"""

import inspect
from collections.abc import Callable

import numpy as np
from numba import njit

CHUNK = 256  # pixels whose buffers stay in the first cache
ZERO, HALF, ONE, TWO = map(np.float32, (0, 0.5, 1, 2))
A, BRIGHTEST = np.float32(-0.75), np.float32(255)  # of bicubic reading
RIM = 3  # pixels beyond the border that it may ask for
INFINITE = np.float32(np.inf)
NEITHER, IN_VIEW, AGREE = map(np.int32, (0, 1, 2))

HOLE = np.float32(-1.0)  # an inverse depth that is not known
NEAR = np.float32(0.1)  # metres: nothing comes nearer to a camera
MIN_SCALE = np.float32(1e-5)  # the smallest q_2 in front of a camera
MAX_SLOPE = np.float32(0.25)  # 1/m per pixel: a steeper step is an edge, not a surface
EDGE = np.float32(0.002)  # 1/m: a step of inverse depth beyond the slope that is an edge
MAX_DISAGREEMENT = np.float32(1)  # source pixels between both refinements of a target pixel
ROUNDING = np.float32(1e-6)  # 1/m: of an inverse depth in float32
TIE = np.float32(1e-5)  # 1/m per pixel: of surfaces as far, prefer the one nearer in the image

Array = np.ndarray
Number = np.float32
Motion = tuple[Number, ...]


def compiled(function: Callable) -> Callable:
    """Compile a function when it is first called, and keep the result on disk."""
    # No flag that forbids infinite values or NaN: the sky is at infinity, planes may be parallel.
    flags = {"nsz", "arcp", "contract"}
    # Tests wrap functions, to check the types of their arguments.
    function = inspect.unwrap(function)
    return njit(nogil=True, cache=True, error_model="numpy", fastmath=flags)(function)


@compiled
def copy(line: Array, to: Array) -> None:
    """Copy some numbers; numba takes seconds to compile what assigns to a slice."""
    for i in range(len(line)):
        to[i] = line[i]


@compiled
def clear(line: Array) -> None:
    """Make holes of all."""
    for i in range(len(line)):
        line[i] = HOLE


@compiled
def invert(depth: Array, w: Array) -> bool:
    """Fill w (H + 2, W + 2) with inverse depth, its rim drawn out straight; True if some are holes.

    The rim makes one-sided slopes of those at the border.
    """
    height, width = depth.shape
    least = ONE
    for row in range(height):
        inside = w[row + 1, 1 : width + 1]
        of_row = depth[row]
        for column in range(width):
            value = ONE / of_row[column]
            inside[column] = value if value >= ZERO and value < INFINITE else HOLE
        for column in range(width):
            least = min(least, inside[column])
    draw_out_rim(w)
    return bool(least < ZERO)


@compiled
def draw_out_rim(w: Array) -> None:
    """Give the rim of a map what makes the slope across the border that beside it; 0 if tiny."""
    height, width = w.shape[0] - 2, w.shape[1] - 2
    for row in range(1, height + 1):
        far = 2 if width > 2 else 1
        w[row, 0] = 2 * w[row, 1] - w[row, far]
        w[row, width + 1] = 2 * w[row, width] - w[row, width + 1 - far]
    far = 2 if height > 2 else 1
    for column in range(width + 2):
        w[0, column] = 2 * w[1, column] - w[far, column]
        w[height + 1, column] = 2 * w[height, column] - w[height + 1 - far, column]


@compiled
def scalars(ray: Array, shift: Array) -> Motion:
    """Return a motion's ray (3, 3) and shift (3) as twelve numbers, which stay in registers."""
    return (
        ray[0, 0], ray[0, 1], ray[0, 2], shift[0],
        ray[1, 0], ray[1, 1], ray[1, 2], shift[1],
        ray[2, 0], ray[2, 1], ray[2, 2], shift[2],
    )  # fmt: skip


@compiled
def to_u(m: Motion, u: Number, v: Number, w: Number) -> Number:
    """Return q_0 of a pixel (u, v) of inverse depth w."""
    return m[0] * u + m[1] * v + m[2] + m[3] * w


@compiled
def to_v(m: Motion, u: Number, v: Number, w: Number) -> Number:
    """Return q_1."""
    return m[4] * u + m[5] * v + m[6] + m[7] * w


@compiled
def to_scale(m: Motion, u: Number, v: Number, w: Number) -> Number:
    """Return q_2."""
    return m[8] * u + m[9] * v + m[10] + m[11] * w


@compiled
def clamp(value: Number, low: Number, high: Number) -> Number:
    """Return value, between low and high; low if it is not a number."""
    value = value if value > low else low
    return value if value < high else high


@compiled
def splat(w: Array, there: Motion, cells: Array, cell: Array, seen: Array) -> None:
    """Drop the pixels inside w (H + 2, W + 2) into cells (rows + 2, columns + 2).

    The largest w' stays. The rim collects what falls out of the image or is behind the near plane
    or unknown. cell, seen: buffers of W.
    """
    height, width = w.shape[0] - 2, w.shape[1] - 2
    rows, columns = np.float32(cells.shape[0] - 2), np.float32(cells.shape[1] - 2)
    stride = np.float32(cells.shape[1])
    flat = cells.reshape(-1)
    clear(flat)
    for row in range(height):
        v = np.float32(row) + HALF
        line = w[row + 1, 1 : width + 1]
        for i in range(width):
            scale = to_scale(there, np.float32(i) + HALF, v, line[i])
            seen[i] = line[i] * (ONE / max(scale, MIN_SCALE))
        for i in range(width):
            u = np.float32(i) + HALF
            scale = to_scale(there, u, v, line[i])
            inverse = ONE / max(scale, MIN_SCALE)
            column = clamp(np.floor(to_u(there, u, v, line[i]) * inverse), -ONE, columns)
            to_row = clamp(np.floor(to_v(there, u, v, line[i]) * inverse), -ONE, rows)
            nearness = line[i] * inverse
            slack = min(min(nearness, ONE / NEAR - nearness), scale - MIN_SCALE)
            index = (to_row + ONE) * stride + column + ONE
            cell[i] = np.int32(index if slack >= ZERO else ZERO)
        for i in range(width):
            index = np.uint32(cell[i])
            flat[index] = max(flat[index], seen[i])


@compiled
def close(cells: Array, closed: Array) -> None:
    """Write what is inside of cells (rows + 2, columns + 2) to closed (rows, columns), closed."""
    rows, columns = closed.shape
    line = np.empty(columns, np.float32)
    for row in range(rows):
        middle = cells[row + 1, 1 : columns + 1]
        if 0 < row < rows - 1:
            above, below = cells[row, 1 : columns + 1], cells[row + 2, 1 : columns + 1]
            for column in range(columns):
                line[column] = max(middle[column], min(above[column], below[column]))
        else:
            copy(middle, line)
        target = closed[row]
        target[0], target[columns - 1] = line[0], line[columns - 1]
        for column in range(1, columns - 1):
            target[column] = max(line[column], min(line[column - 1], line[column + 1]))


@compiled
def fill(w: Array) -> None:
    """Fill the holes of a map (H, W), in place, from the smallest pyramid cell that has a value."""
    height, width = w.shape
    if height == 1 and width == 1:
        return
    coarse = np.empty(((height + 1) // 2, (width + 1) // 2), np.float32)
    clear(coarse.reshape(-1))
    is_holed = False
    for row in range(height):
        line, target = w[row], coarse[row // 2]
        for column in range(width // 2):
            target[column] = max(target[column], max(line[2 * column], line[2 * column + 1]))
        if width % 2:
            target[width // 2] = max(target[width // 2], line[width - 1])
        least = ONE
        for column in range(width):
            least = min(least, line[column])
        is_holed |= least < ZERO
    if is_holed:
        fill(coarse)
        for row in range(height):
            line, source = w[row], coarse[row // 2]
            for column in range(width):
                if line[column] < ZERO:
                    line[column] = source[column // 2]


@compiled
def spread(place: Array, columns: int, u: Array, v: Array) -> None:
    """Write the centres of pixels, which are numbered row by row."""
    width = np.float32(columns)
    for i in range(len(place)):
        v[i] = np.floor((np.float32(place[i]) + HALF) / width) + HALF
    for i in range(len(place)):
        row = np.floor((np.float32(place[i]) + HALF) / width)
        u[i] = np.float32(place[i]) - row * width + HALF


@compiled
def land(back: Motion, u: Array, v: Array, x: Array, size: tuple[int, int], index: Array) -> None:
    """Write where in w, row by row with its rim, pixels (u, v) of inverse depth x come to lie."""
    last_row, last_column = np.float32(size[0] - 1), np.float32(size[1] - 1)
    stride = np.float32(size[1] + 2)
    for i in range(len(x)):
        w = clamp(x[i], ZERO, ONE / NEAR)
        inverse = ONE / max(to_scale(back, u[i], v[i], w), MIN_SCALE)
        column = clamp(np.floor(to_u(back, u[i], v[i], w) * inverse), ZERO, last_column)
        row = clamp(np.floor(to_v(back, u[i], v[i], w) * inverse), ZERO, last_row)
        index[i] = np.int32((row + ONE) * stride + column + ONE)


@compiled
def slope(before: Number, here: Number, after: Number) -> Number:
    """Return the smaller of both differences; 0 where signs differ and at edges on both sides."""
    left, right = here - before, after - here
    value = max(min(left, right), ZERO) + min(max(left, right), ZERO)
    return value if abs(value) <= MAX_SLOPE else ZERO


@compiled
def planes_at(w: Array, index: Array, here: Array, slope_u: Array, slope_v: Array) -> None:
    """Write inverse depth and slopes of the planes at some places of w."""
    flat, stride = w.reshape(-1), w.shape[1]
    for i in range(len(index)):
        k = np.uint32(index[i])
        value = flat[k]
        here[i] = value
        slope_u[i] = slope(flat[k - np.uint32(1)], value, flat[k + np.uint32(1)])
        slope_v[i] = slope(flat[k - np.uint32(stride)], value, flat[k + np.uint32(stride)])


@compiled
def meet(
    back: Motion,
    u: Array,
    v: Array,
    index: Array,
    here: Array,
    slope_u: Array,
    slope_v: Array,
    stride: int,
    x: Array,
) -> None:
    """Write where the rays of pixels (u, v) meet the planes at `index`: x = a . r / (1 - a . b)."""
    across = np.float32(stride)
    for i in range(len(x)):
        number = np.float32(index[i])
        row = np.floor((number + HALF) / across)
        offset = here[i] - slope_u[i] * (number - row * across - HALF) - slope_v[i] * (row - HALF)
        above = (
            slope_u[i] * to_u(back, u[i], v[i], ZERO)
            + slope_v[i] * to_v(back, u[i], v[i], ZERO)
            + offset * to_scale(back, u[i], v[i], ZERO)
        )
        below = ONE - slope_u[i] * back[3] - slope_v[i] * back[7] - offset * back[11]
        x[i] = above / below


@compiled
def judge(
    back: Motion,
    u: Array,
    v: Array,
    first: Array,
    second: Array,
    size: tuple[int, int],
    verdict: Array,
) -> None:
    """Write whether the second of two meetings of a ray is IN_VIEW, and whether they AGREE."""
    bottom, right = np.float32(size[0]), np.float32(size[1])
    for i in range(len(second)):
        w = clamp(first[i], ZERO, ONE / NEAR)
        inverse = ONE / max(to_scale(back, u[i], v[i], w), MIN_SCALE)
        first_u, first_v = to_u(back, u[i], v[i], w) * inverse, to_v(back, u[i], v[i], w) * inverse
        w = clamp(second[i], ZERO, ONE / NEAR)
        excess = abs(second[i] - w)
        scale = to_scale(back, u[i], v[i], w)
        inverse = ONE / max(scale, MIN_SCALE)
        at_u, at_v = to_u(back, u[i], v[i], w) * inverse, to_v(back, u[i], v[i], w) * inverse
        moved = max(abs(at_u - first_u), abs(at_v - first_v))
        agree = (moved <= MAX_DISAGREEMENT) & (excess <= ROUNDING)
        margin = min(min(at_u, right - at_u), min(at_v, bottom - at_v))
        is_in_view = min(margin, scale - MIN_SCALE) >= ZERO
        verdict[i] = (IN_VIEW if is_in_view else NEITHER) | (AGREE if agree else NEITHER)


@compiled
def draw_in(
    back: Motion,
    u: Array,
    v: Array,
    x: Array,
    size: tuple[int, int],
    center: tuple[Number, Number],
    is_row: bool,
    out: Array,
) -> None:
    """Write u (v, if is_row) of landings, those out of view drawn to the principal point."""
    height, width = np.float32(size[0]), np.float32(size[1])
    center_u, center_v = center
    left, right = -max(center_u, HALF), max(width - center_u, HALF)
    top, bottom = -max(center_v, HALF), max(height - center_v, HALF)
    for i in range(len(x)):
        w = clamp(x[i], ZERO, ONE / NEAR)
        inverse = ONE / max(to_scale(back, u[i], v[i], w), MIN_SCALE)
        from_u = to_u(back, u[i], v[i], w) * inverse - center_u
        from_v = to_v(back, u[i], v[i], w) * inverse - center_v
        excess = max(max(from_u / right, from_u / left), max(from_v / bottom, from_v / top))
        shrink = ONE / max(excess, ONE)
        out[i] = (from_v * shrink + center_v) if is_row else (from_u * shrink + center_u)


@compiled
def outlined(w: Array, filled: Array, index: int, shape: tuple[int, int]) -> bool:
    """Tell whether something nearer is beside a place of w, whose colour has bled into it."""
    height, width = shape
    stride = width + 2
    row, column = index // stride, index % stride
    here = filled[row, column]
    by_u = slope(filled[row, column - 1], here, filled[row, column + 1])
    by_v = slope(filled[row - 1, column], here, filled[row + 1, column])
    nearest = w[row, column]
    limit = nearest + EDGE + TWO * (abs(by_u) + abs(by_v))
    for i in range(max(row - 1, 1), min(row + 1, height) + 1):
        for j in range(max(column - 1, 1), min(column + 1, width) + 1):
            nearest = max(nearest, w[i, j])
    return nearest > limit


@compiled
def find(
    depth: Array,
    source: int,
    ray: Array,
    shift: Array,
    ray_back: Array,
    shift_back: Array,
    center: tuple[Number, Number],
    shape: tuple[int, int],
    place: Array,
    w: Array,
    u: Array,
    v: Array,
    seen: Array,
    hidden: Array,
) -> None:
    """Take one source through the steps of `reprojection` up to reading its colour.

    depth (B, S, H, W); ray (B, 3, 3) and shift (B, 3) there and back; center: (u, v), of depth;
    shape: (rows, columns), of the target; place (1 or B, N): its pixels, row by row. Written are
    w, u, v, seen and hidden (B, N), as in `reprojection.Found`.
    """
    num, _, height, width = depth.shape
    size, (rows, columns) = (height, width), shape
    known = np.empty((height + 2, width + 2), np.float32)
    cells = np.empty((rows + 2, columns + 2), np.float32)
    guess = np.empty((rows, columns), np.float32)
    index = np.empty(max(width, place.shape[1]), np.int32)
    buffer = np.empty((6, max(width, CHUNK)), np.float32)
    verdict = np.empty(CHUNK, np.int32)
    whole = np.zeros((rows, columns), np.uint8)
    for image in range(num):
        has_holes = invert(depth[image, source], known)
        filled = known
        if has_holes:
            inside = np.empty((height, width), np.float32)
            for row in range(height):
                copy(known[row + 1, 1 : width + 1], inside[row])
            fill(inside)
            filled = np.empty((height + 2, width + 2), np.float32)
            for row in range(height):
                copy(inside[row], filled[row + 1, 1 : width + 1])
            draw_out_rim(filled)
        splat(known, scalars(ray[image], shift[image]), cells, index, buffer[0])
        close(cells, guess)
        fill(guess)
        back = scalars(ray_back[image], shift_back[image])
        pixels = place[min(image, len(place) - 1)]
        nearest = guess.reshape(-1)
        of_depth = known.reshape(-1)
        is_any_hidden = False
        for start in range(0, len(pixels), CHUNK):
            end = min(start + CHUNK, len(pixels))
            n = end - start
            of_u, of_v, first = buffer[0, :n], buffer[1, :n], buffer[2, :n]
            here, slope_u, slope_v = buffer[3, :n], buffer[4, :n], buffer[5, :n]
            into, x = index[start:end], w[image, start:end]
            spread(pixels[start:end], columns, of_u, of_v)
            for i in range(n):
                x[i] = nearest[np.uint32(pixels[start + i])]
            for _ in range(2):
                copy(x, first)
                land(back, of_u, of_v, x, size, into)
                planes_at(filled, into, here, slope_u, slope_v)
                meet(back, of_u, of_v, into, here, slope_u, slope_v, width + 2, x)
            land(back, of_u, of_v, x, size, into)
            judge(back, of_u, of_v, first, x, size, verdict[:n])
            for is_row in (False, True):
                out = v[image, start:end] if is_row else u[image, start:end]
                draw_in(back, of_u, of_v, x, size, center, is_row, out)
            for i in range(n):
                x[i] = clamp(x[i], ZERO, ONE / NEAR)
            for i in range(n):
                is_judged = (verdict[i] & IN_VIEW) != 0
                if has_holes:
                    is_judged &= of_depth[np.uint32(into[i])] >= ZERO
                agree = (verdict[i] & AGREE) != 0
                seen[image, start + i] = is_judged & agree
                hidden[image, start + i] = is_judged & (not agree)
                is_any_hidden |= is_judged & (not agree)
        if is_any_hidden:
            mark_outlines(known, filled, pixels, index, whole, seen[image], hidden[image])


@compiled
def mark_outlines(
    known: Array,
    filled: Array,
    pixels: Array,
    index: Array,
    whole: Array,
    seen: Array,
    hidden: Array,
) -> None:
    """Count as hidden what was seen beside a hidden pixel, if it lies beside something nearer."""
    rows, columns = whole.shape
    shape = known.shape[0] - 2, known.shape[1] - 2
    flat = whole.reshape(-1)
    for i in range(len(flat)):
        flat[i] = 0
    for i in range(len(pixels)):
        if hidden[i]:
            row, column = pixels[i] // columns, pixels[i] % columns
            for k in range(max(row - 1, 0), min(row + 2, rows)):
                for j in range(max(column - 1, 0), min(column + 2, columns)):
                    whole[k, j] = 1
    for i in range(len(pixels)):
        if seen[i] and flat[pixels[i]] and outlined(known, filled, index[i], shape):
            seen[i], hidden[i] = False, True


@compiled
def sum_windows(plane: Array, size: int, column_sums: Array, sums: Array) -> None:
    """Write the sums of size x size pixels where these begin; a line's end begins none."""
    height, width = plane.shape
    for row in range(height - size + 1):
        first, out = plane[row], sums[row]
        for i in range(width):
            column_sums[i] = np.int16(first[i])
        for k in range(1, size):
            line = plane[row + k]
            for i in range(width):
                column_sums[i] += np.int16(line[i])
        for i in range(width):
            out[i] = column_sums[i]
        for k in range(1, size):
            for i in range(width - size + 1):
                out[i] += column_sums[i + k]


@compiled
def interpolate(
    sums: Array, stride: int, index: Array, f: Array, g: Array, scale: Number, out: Array
) -> None:
    """Write sums read bilinearly f, g beyond the places `index`, rounded."""
    one, line = np.uint32(1), np.uint32(stride)
    for i in range(len(index)):
        k = np.uint32(index[i])
        above, below = np.float32(sums[k]), np.float32(sums[k + line])
        above += f[i] * (np.float32(sums[k + one]) - above)
        below += f[i] * (np.float32(sums[k + line + one]) - below)
        out[i] = np.uint8((above + g[i] * (below - above)) * scale + HALF)


@compiled
def read(
    image: Array, source: int, u: Array, v: Array, factor: Number, size: int, color: Array
) -> None:
    """Read images (B, S, 3, H, W) of a source at pixels (u, v) (B, N) into color (B, 3, N).

    u, v times `factor` are pixels of the image. Each is the mean of the size x size pixels around
    it (`resampling`), bilinear between windows.
    """
    height, width = image.shape[3:]
    right, bottom = np.float32(width - size), np.float32(height - size)
    half, scale = np.float32(size) * HALF, ONE / np.float32(size * size)
    # A column and a row more: what lies beyond the last window has no weight, but is looked at.
    stride = width + 1
    across = np.float32(stride)
    sums = np.zeros((3, (height + 1) * stride), np.int16)
    column_sums = np.empty(width, np.int16)
    index = np.empty(CHUNK, np.int32)
    f, g = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    for b in range(len(image)):
        for channel in range(3):
            windows = sums[channel].reshape(height + 1, stride)
            sum_windows(image[b, source, channel], size, column_sums, windows)
        for start in range(0, u.shape[1], CHUNK):
            n = min(CHUNK, u.shape[1] - start)
            of_u, of_v = u[b, start : start + n], v[b, start : start + n]
            for i in range(n):
                x = clamp(of_u[i] * factor - half, ZERO, right)
                f[i] = x - np.floor(x)
            for i in range(n):
                y = clamp(of_v[i] * factor - half, ZERO, bottom)
                g[i] = y - np.floor(y)
            for i in range(n):
                x = np.floor(clamp(of_u[i] * factor - half, ZERO, right))
                y = np.floor(clamp(of_v[i] * factor - half, ZERO, bottom))
                index[i] = np.int32(y * across + x)
            for channel in range(3):
                out = color[b, channel, start : start + n]
                interpolate(sums[channel], stride, index[:n], f[:n], g[:n], scale, out)


@compiled
def widen(plane: Array, wide: Array) -> None:
    """Write a plane with its border drawn out by RIM pixels on each side."""
    height, width = plane.shape
    for row in range(height + 2 * RIM):
        line, out = plane[min(max(row - RIM, 0), height - 1)], wide[row]
        for i in range(RIM):
            out[i] = np.float32(line[0])
            out[RIM + width + i] = np.float32(line[width - 1])
        for i in range(width):
            out[RIM + i] = np.float32(line[i])


@compiled
def weigh(places: Array, factor: Number, length: int, weights: Array, first: Array) -> None:
    """Write the weights (4, N) of the pixels of a line around places, and the first one's number.

    The kernel of Keys (1981) with a = -3/4, as PyTorch has it. Far beyond the border all are alike.
    """
    last = np.float32(length)
    w0, w1, w2, w3 = weights[0], weights[1], weights[2], weights[3]
    for i in range(len(places)):
        x = places[i] * factor - HALF
        f = x - np.floor(x)
        w0[i] = A * ((f - TWO) * f + ONE) * f
        w1[i] = ((A + TWO) * f - (A + TWO + ONE)) * f * f + ONE
    for i in range(len(places)):
        x = places[i] * factor - HALF
        f = ONE - (x - np.floor(x))
        w2[i] = ((A + TWO) * f - (A + TWO + ONE)) * f * f + ONE
        w3[i] = A * ((f - TWO) * f + ONE) * f
    for i in range(len(places)):
        first[i] = np.int32(clamp(np.floor(places[i] * factor - HALF), -TWO, last)) + RIM - 1


@compiled
def cubic(wide: Array, stride: int, index: Array, across: Array, down: Array, out: Array) -> None:
    """Write pixels of a widened plane read bicubically, rounded, and held in range."""
    for i in range(len(index)):
        a0, a1, a2, a3 = across[0, i], across[1, i], across[2, i], across[3, i]
        k, total = np.uint32(index[i]), ZERO
        for row in range(4):
            left = a0 * wide[k] + a1 * wide[k + np.uint32(1)]
            right = a2 * wide[k + np.uint32(2)] + a3 * wide[k + np.uint32(3)]
            total += down[row, i] * (left + right)
            k += np.uint32(stride)
        out[i] = np.uint8(clamp(total, ZERO, BRIGHTEST) + HALF)


@compiled
def read_sharp(image: Array, source: int, u: Array, v: Array, factor: Number, color: Array) -> None:
    """Read as `read` does, bicubically."""
    height, width = image.shape[3:]
    stride = width + 2 * RIM
    wide = np.empty((3, (height + 2 * RIM) * stride), np.float32)
    index, row = np.empty(CHUNK, np.int32), np.empty(CHUNK, np.int32)
    across, down = np.empty((4, CHUNK), np.float32), np.empty((4, CHUNK), np.float32)
    for b in range(len(image)):
        for channel in range(3):
            widen(image[b, source, channel], wide[channel].reshape(height + 2 * RIM, stride))
        for start in range(0, u.shape[1], CHUNK):
            n = min(CHUNK, u.shape[1] - start)
            weigh(u[b, start : start + n], factor, width, across, index)
            weigh(v[b, start : start + n], factor, height, down, row)
            for i in range(n):
                index[i] += row[i] * stride
            for channel in range(3):
                out = color[b, channel, start : start + n]
                cubic(wide[channel], stride, index[:n], across, down, out)


@compiled
def draw_out_rows(color: Array, w: Array, hidden: Array, left: Array) -> bool:
    """Give hidden pixels of (3, H, W) the colour of the farther donor beside them in the row.

    left: buffer of W or more. Returns whether a row had no donors, which is left as it is.
    """
    height, width = hidden.shape
    has_left_over = False
    for row in range(height):
        line = hidden[row]
        count = 0
        for i in range(width):
            count += line[i]
        if count == 0:
            continue
        donor = -1
        for i in range(width):
            is_alone = (i == 0 or not line[i - 1]) and (i == width - 1 or not line[i + 1])
            if not line[i] and is_alone:
                donor = i
            left[i] = donor
        if donor < 0:
            has_left_over = True
            continue
        right = width
        for i in range(width - 1, -1, -1):
            if left[i] == i:
                right = i
            if not line[i]:
                continue
            pick = left[i]
            if pick < 0:
                pick = right
            elif right < width:
                of_left = w[row, pick] + TIE * np.float32(i - pick)
                of_right = w[row, right] + TIE * np.float32(right - i)
                if of_right < of_left:
                    pick = right
            for channel in range(3):
                color[channel, row, i] = color[channel, row, pick]
    return has_left_over


@compiled
def draw_out_background(color: Array, w: Array, hidden: Array) -> None:
    """Do what `inpainting` does, to images (B, 3, H, W), in place."""
    num, rows, columns = hidden.shape
    left = np.empty(max(rows, columns), np.int32)
    for image in range(num):
        if draw_out_rows(color[image], w[image], hidden[image], left):
            beside = np.zeros((columns, rows), np.bool_)
            for row in range(rows):
                line = hidden[image, row]
                if not has_donor(line):
                    beside[:, row] = line
            draw_out_rows(color[image].transpose(0, 2, 1), w[image].T, beside, left)


@compiled
def has_donor(line: Array) -> bool:
    """Tell whether a row has a pixel that is not hidden, nor a neighbour of one that is."""
    width = len(line)
    for i in range(width):
        is_alone = (i == 0 or not line[i - 1]) and (i == width - 1 or not line[i + 1])
        if not line[i] and is_alone:
            return True
    return False


def compile_all() -> None:
    """Compile what `reprojection` calls, for a quarter of a minute, unless the disk has it."""
    num_pixels, floats = 4, np.zeros((3, 1, 4), np.float32)
    masks = np.zeros((2, 1, num_pixels), np.bool_)
    motion = np.eye(3, dtype=np.float32)[None], np.zeros((1, 3), np.float32)
    depth, place = np.ones((1, 1, 2, 2), np.float32), np.arange(num_pixels, dtype=np.int32)[None]
    find(depth, 0, *motion, *motion, (ONE, ONE), (2, 2), place, *floats, *masks)
    color = np.zeros((1, 3, num_pixels), np.uint8)
    image = np.zeros((1, 1, 3, 2, 2), np.uint8)
    read(image, 0, *floats[:2], ONE, 1, color)
    read_sharp(image, 0, *floats[:2], ONE, color)
    square = 1, 2, 2
    draw_out_background(
        color.reshape(1, 3, 2, 2), floats[0].reshape(square), masks[0].reshape(square)
    )
