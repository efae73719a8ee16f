"""The sliding window in front of convolutions, depthwise products, pooling, and behind upsampling and padding."""

from __future__ import annotations

from hw.fpga import ir
from hw.fpga.blocks.base import memory_bram18, memory_lut
from hw.fpga.netlist import Netlist, Stream


def rows(window: ir.Window, height: int) -> int:
    """Rows of the circular buffer: what a window spans, and as many as the next row of windows needs."""
    return (window.kernel[0] - 1) * window.dilation[0] + 1 + min(window.stride[0], height)


def is_pointwise(window: ir.Window) -> bool:
    """One pixel in, one pixel out: no rows to keep."""
    return window.kernel == (1, 1) and window.stride == (1, 1) and not any(window.pads)


def cost(window: ir.Window, shape: tuple[int, int, int], width: int, beats_per_pixel: int) -> tuple[float, float]:
    """(LUT, BRAM18) estimated."""
    h, w = (shape[0] * shape[1], 1) if is_pointwise(window) else shape[:2]
    depth = rows(window, h) * w * beats_per_pixel
    return (60 if is_pointwise(window) else 290) + memory_lut(depth, width), memory_bram18(depth, width)


def build(
    net: Netlist,
    stream: Stream,
    shape: tuple[int, int, int],
    window: ir.Window,
    *,
    repeat: int = 1,
    channel_outer: bool = False,
    padding: int = 0,
    up: tuple[int, int] = (1, 1),
) -> Stream:
    """Windows of a stream of [H, W, C] in beats of `stream.par` channels. padding: the value of a border element."""
    h, w, c = shape
    folds = c // stream.par
    oh, ow = window.output(h, w)
    oh, ow = oh * up[0], ow * up[1]
    if is_pointwise(window) and up == (1, 1):
        h, w, oh, ow = h * w, 1, h * w, 1
    border = sum((padding & ((1 << stream.bits) - 1)) << (i * stream.bits) for i in range(stream.par))
    params: dict[str, int | str] = {
        "WIDTH": stream.width, "CF": folds, "H": h, "W": w, "OH": oh, "OW": ow,
        "KY": window.kernel[0], "KX": window.kernel[1], "SY": window.stride[0], "SX": window.stride[1],
        "DY": window.dilation[0], "DX": window.dilation[1], "PT": window.pads[0], "PL": window.pads[1],
        "UY": up[0], "UX": up[1], "REPEAT": repeat, "CHANNEL_OUTER": int(channel_outer),
        "ROWS": rows(window, h), "PADDING": f"{stream.width}'h{border:x}",
    }  # fmt: skip
    beats = oh * ow * repeat * window.size * folds
    return net.add(
        "dp_window", params, [stream], stream.par, stream.bits, stream.signed, beats, cycles=max(beats, stream.beats)
    )[0]


def deform_rows(op: ir.Conv, height: int) -> int:
    """Rows of a deformable window's buffer: all that a tap may reach, and one that is being written."""
    return min(2 * (op.window.kernel[0] // 2) * op.bound + 2, height + 1)


def deform_cost(op: ir.Conv, shape: tuple[int, int, int], width: int, folds: int, ports: int) -> tuple[float, float]:
    """(LUT, BRAM18) estimated of the deformable window block and of the distances that wait for it."""
    depth = deform_rows(op, shape[0]) * shape[1] * folds
    waiting = deform_wait(op, shape), ir.bits_for(0, op.bound)[0]
    lut = 170 + ports * (110 + memory_lut(depth, width)) + memory_lut(*waiting)
    return lut, ports * memory_bram18(depth, width) + memory_bram18(*waiting)


def deform_wait(op: ir.Conv, shape: tuple[int, int, int]) -> int:
    """Distances that must find room while the window waits for the farthest row that a tap may reach: image and distances
    come from one fork, so neither stream may hold up the other."""
    return (min(op.window.kernel[0] // 2 * op.bound, shape[0] - 1) + 2) * shape[1] + 8


def deform_stall(op: ir.Conv, shape: tuple[int, int, int]) -> int:
    """Pixels of the next frame that the reader may have to wait for when a frame ends: its first place may need that many
    rows, and the buffer holds no more of them while the last rows of the old frame are still needed. At most so many."""
    height, reach = shape[0], op.window.kernel[0] // 2 * op.bound
    ahead = deform_rows(op, height) - (height - max(0, height - 1 - reach))
    return max(0, min(height, reach + 1) - ahead) * shape[1]


def build_deform(
    net: Netlist,
    stream: Stream,
    distance: Stream,
    shape: tuple[int, int, int],
    op: ir.Conv,
    ports: int,
    repeat: int = 0,
) -> Stream:
    """Windows at distances of their own. repeat 0: (channels, taps), for depthwise products; else that often (taps, channels)."""
    h, w, c = shape
    folds, kernel = c // stream.par, op.window.kernel[0]
    params: dict[str, int | str] = {
        "WIDTH": stream.width, "CF": folds, "H": h, "W": w, "K": kernel, "BOUND": op.bound, "DB": distance.bits, "PORTS": ports,
        "REPEAT": max(1, repeat), "CHANNEL_OUTER": int(not repeat), "ROWS": deform_rows(op, h),
    }  # fmt: skip
    beats = h * w * folds * max(1, repeat) * kernel * kernel // ports
    waiting = net.buffer(distance, least=deform_wait(op, shape))
    return net.add(
        "dp_window_deform",
        params,
        [stream, waiting],
        stream.par * ports,
        stream.bits,
        stream.signed,
        beats,
        cycles=max(beats, stream.beats) + deform_stall(op, shape) * folds,
    )[0]


def scan(window: ir.Window, shape: tuple[int, int, int]) -> int | None:
    """Pixels that the parallel window block takes for a frame; None where the window is not one that it can slide."""
    h, w = shape[:2]
    oh, ow = window.output(h, w)
    down, right = ((k - 1) * d for k, d in zip(window.kernel, window.dilation, strict=True))
    if (
        window.size == 1
        or window.pads[0] > down
        or window.pads[1] > right
        or (ow - 1) * window.stride[1] >= window.stride[0] * w
    ):
        return None
    last = (
        ((oh - 1) * window.stride[0] - window.pads[0] + down) * w + (ow - 1) * window.stride[1] - window.pads[1] + right
    )
    return max(h * w, last + 1)


def parallel_cost(
    window: ir.Window, shape: tuple[int, int, int], width: int, beats_per_pixel: int
) -> tuple[float, float]:
    """(LUT, BRAM18) estimated of the parallel window block: its delay lines and its masks."""
    (ky, kx), (dy, dx) = window.kernel, window.dilation
    lines = dy * shape[1] * beats_per_pixel, (ky - 1) * width
    pixels = dx * beats_per_pixel, (kx - 1) * ky * width if dx * beats_per_pixel > 1 else 0
    lut = 80 + 4 * (ky + kx)  # masks are the registers' synchronous reset
    return lut + memory_lut(*lines) + memory_lut(*pixels), memory_bram18(*lines) + memory_bram18(*pixels)


def build_parallel(net: Netlist, stream: Stream, shape: tuple[int, int, int], window: ir.Window) -> Stream:
    """Whole windows of a stream of [H, W, C] in beats of `stream.par` channels: a beat is [ky, kx, par]. Padding adds zeros."""
    h, w, c = shape
    folds, frame = c // stream.par, scan(window, shape)
    assert frame is not None
    oh, ow = window.output(h, w)
    params: dict[str, int | str] = {
        "WIDTH": stream.width, "CF": folds, "H": h, "W": w, "OH": oh, "OW": ow,
        "KY": window.kernel[0], "KX": window.kernel[1], "SY": window.stride[0], "SX": window.stride[1],
        "DY": window.dilation[0], "DX": window.dilation[1], "PT": window.pads[0], "PL": window.pads[1], "SCAN": frame,
    }  # fmt: skip
    par = stream.par * window.size
    return net.add(
        "dp_window_parallel", params, [stream], par, stream.bits, stream.signed, oh * ow * folds, cycles=frame * folds
    )[0]
