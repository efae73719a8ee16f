"""Runs the accelerator of this package on its board.

    python accelerator.py validate [--port /dev/ttyUSB0]      golden inputs through the hardware, results compared bit for bit
    python accelerator.py throughput [--frames 1000]          frames per second, measured
    python accelerator.py run images.npy -o outputs.npy       float inputs [N, ...] to float outputs
    python accelerator.py program                             load the bitstream with openFPGALoader (ULX3S)

On PYNQ boards this loads accelerator.bit (copy accelerator.bit and .hwh here, if Vivado built them elsewhere). Needs NumPy, and pynq or pyserial; nothing else.
Exit codes: 0 done, 2 the input or the package, 3 the board does not answer, 4 results differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

import numpy as np


class Link(Protocol):
    """Moves whole frames of stream words."""

    def transfer(self, data: bytes, expected: int) -> bytes: ...


class PackageError(Exception):
    """The package is incomplete or changed."""


class Package:
    """package.json and the files beside it, hashes checked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.meta = json.loads((folder / "package.json").read_text())
        except (OSError, ValueError) as error:
            raise PackageError(f"package.json cannot be read: {error}") from None
        if not isinstance(self.meta, dict) or not isinstance(self.meta.get("files"), dict):
            raise PackageError("package.json is not of this version; copy the whole package again")
        for name, want in self.meta["files"].items():
            path = folder / name
            if not path.is_file():
                raise PackageError(f"{name} is missing; copy the whole package to the board")
            if hashlib.sha256(path.read_bytes()).hexdigest() != want:
                raise PackageError(
                    f"{name} is not the file that this package was built with (sha256 differs); copy it again"
                )

    def golden(self) -> tuple[np.ndarray, np.ndarray]:
        data = np.load(self.folder / "golden.npz")
        return data["inputs"], data["outputs"]


def to_bytes(values: np.ndarray, side: dict) -> bytes:
    """Integers [N, H, W, C] as stream words."""
    flat = values.reshape(-1, side["elements"]).astype(np.int64) & ((1 << side["bits"]) - 1)
    size = side["word_bytes"]
    if side["elements"] * side["bits"] <= 62:
        word = np.zeros(len(flat), np.uint64)
        for i in range(side["elements"]):
            word |= flat[:, i].astype(np.uint64) << np.uint64(i * side["bits"])
        return np.ascontiguousarray(
            np.pad(word.view(np.uint8).reshape(-1, 8), ((0, 0), (0, max(0, size - 8))))[:, :size]
        ).tobytes()
    return b"".join(
        sum(int(v) << (i * side["bits"]) for i, v in enumerate(row)).to_bytes(size, "little") for row in flat
    )


def from_bytes(data: bytes, side: dict, frames: int) -> np.ndarray:
    """Stream words as integers [N, H, W, C]."""
    size, bits, mask = side["word_bytes"], side["bits"], (1 << side["bits"]) - 1
    rows = [int.from_bytes(data[k : k + size], "little") for k in range(0, frames * side["beats"] * size, size)]
    flat = np.array([[(w >> (i * bits)) & mask for i in range(side["elements"])] for w in rows], np.int64)
    if side["signed"]:
        flat = np.where(flat >= 1 << (bits - 1), flat - (1 << bits), flat)
    return flat.reshape(frames, *side["shape"])


class Accelerator:
    """Integers or floats through the hardware. `link` has transfer(bytes, expected bytes) -> bytes."""

    def __init__(self, package: Package, link: Link) -> None:
        self.package, self.link = package, link
        self.source, self.sink = package.meta["input"], package.meta["output"]

    def integers(self, values: np.ndarray) -> np.ndarray:
        """[N, H, W, C] integers in, [N, H, W, C] integers out."""
        frames = len(values)
        expected = frames * self.sink["beats"] * self.sink["word_bytes"]
        return from_bytes(self.link.transfer(to_bytes(values, self.source), expected), self.sink, frames)

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """Float inputs [N, ...] as the model takes them to integers [N, H, W, C]."""
        s = self.source
        h, w, c = s["shape"]
        last = np.moveaxis(np.asarray(x, np.float64).reshape(len(x), c, h, w), 1, 3)
        v = np.rint((last * np.array(s["gain"]) + np.array(s["offset"])) / s["scale"])
        return np.clip(v, s["low"], s["high"]).astype(np.int64)

    def dequantize(self, v: np.ndarray) -> np.ndarray:
        """Integer results to the model's float outputs."""
        s = self.sink
        y = (
            (v * np.array(s["scale"]) + np.array(s["offset"]))
            .reshape(len(v), -1)[:, s["order"]]
            .reshape(len(v), *s["float_shape"])
        )
        for name, axis in s["after"]:
            if name in ("Softmax", "LogSoftmax"):
                y = y - y.max(axis=axis, keepdims=True)
                total = np.exp(y).sum(axis=axis, keepdims=True)
                y = np.exp(y) / total if name == "Softmax" else y - np.log(total)
            elif name == "ArgMax":
                y = y.argmax(axis=axis)
            else:
                y = np.tanh(y) if name == "Tanh" else np.maximum(y, 0) if name == "Relu" else 1 / (1 + np.exp(-y))
        return y.astype(np.int64) if s["labels"] else y

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.dequantize(self.integers(self.quantize(x)))

    def validate(self) -> int:
        """Integers that differ on the golden vectors."""
        inputs, outputs = self.package.golden()
        return int((self.integers(inputs) != outputs).sum())

    def throughput(self, frames: int) -> float:
        """Frames per second, golden inputs repeated, transfers included."""
        inputs, _ = self.package.golden()
        data = to_bytes(np.concatenate([inputs] * (-(-frames // len(inputs))))[:frames], self.source)
        expected = frames * self.sink["beats"] * self.sink["word_bytes"]
        start = time.perf_counter()
        self.link.transfer(data, expected)
        return frames / (time.perf_counter() - start)


def connect(package: Package, port: str = "", baud: int = 1_000_000) -> Accelerator:
    """Load the hardware and return its accelerator. Raises PackageError, or what the link raises."""
    if package.meta["link"] == "serial":
        from serial_link import SerialLink

        link = SerialLink.open(port or "/dev/ttyUSB0", baud)
        design, _, _ = link.info()
        if design != package.meta["design"][:16]:
            raise PackageError(
                f"the board runs another design ({design}); load this package's bitstream: python accelerator.py program"
            )
        return Accelerator(package, link)
    from pynq_link import PynqLink

    return Accelerator(package, PynqLink(package.folder, package.meta))


def program(package: Package) -> None:
    """Load the bitstream over USB. Raises PackageError or ConnectionError."""
    bit, board = package.folder / "accelerator.bit", package.meta.get("loader", "")
    if not board or not bit.is_file():
        raise PackageError("this package has no bitstream that openFPGALoader could load")
    tool = shutil.which("openFPGALoader")
    if tool is None:
        raise PackageError("openFPGALoader is not on PATH; apt-get install openfpgaloader")
    done = subprocess.run([tool, "-b", board, str(bit)], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise ConnectionError("openFPGALoader failed: " + " / ".join((done.stdout + done.stderr).split("\n")[-6:]))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="run the accelerator of this package")
    parser.add_argument("command", choices=("validate", "throughput", "run", "program"))
    parser.add_argument("inputs", nargs="?", help="run: .npy with float inputs [N, ...]")
    parser.add_argument("-o", "--output", default="outputs.npy")
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--port", default="")
    parser.add_argument("--baud", type=int, default=1_000_000)
    args = parser.parse_args(argv)
    try:
        package = Package(Path(__file__).resolve().parent)
        if args.command == "program":
            program(package)
            print("loaded")
            return 0
        accelerator = connect(package, args.port, args.baud)
        if args.command == "validate":
            wrong = accelerator.validate()
            print("all results are right" if not wrong else f"{wrong} integers differ from the reference")
            return 4 if wrong else 0
        if args.command == "throughput":
            print(f"{accelerator.throughput(args.frames):.1f} frames/s over {args.frames} frames, transfers included")
            return 0
        if not args.inputs:
            raise PackageError("run needs a .npy file with inputs")
        np.save(args.output, accelerator(np.load(args.inputs)))
        print(f"wrote {args.output}")
        return 0
    except ConnectionError as error:  # the links' LinkError
        print(f"error: {error}", file=sys.stderr)
        return 3
    except (PackageError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
