"""Every setting of `deploy profile`."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.config import argument, option


@dataclass(frozen=True)
class ProfileConfig:
    """Settings of the latency measurement."""

    model: str = argument("export folder, or an ONNX file", "")
    output: str = option("profile", "folder to write", short="-o", identity=False)
    runtime: str = option(
        "onnxruntime",
        "runtime to measure beside onnxruntime; all: every one installed; auto: all, with 1 and --threads threads, and the best is shipped",
        choices=("onnxruntime", "tvm", "openvino", "cuda", "tensorrt", "tvm-cuda", "all", "auto"),
    )
    threads: int = option(1, "threads of the runtime (auto: at most)", low=1, high=1024)
    samples: int = option(200, "samples per candidate, at least 100", low=1)
    eval: str = option("", "labelled data for the accuracy of every candidate (image folder, .npz, pkg.mod:function)")
    eval_samples: int = option(10000, "evaluation samples at most", low=1)
    max_drop: float = option(1.0, "accuracy (or agreement) in points that a candidate may lose against float", low=0)
    input_shape: str = option("", "input shape, for ONNX files with open dimensions")
    tune: bool = option(True, "also measure equivalent kernels of the runtime and keep the fastest")
    seed: int = option(0, "seed of the inputs", low=0, high=2**63 - 1)
    tune_seconds: int = option(0, "also tune TVM's register tiles, at most so long per model", low=0)
    tune_database: str = option("", "tuned tiles to read and extend (default: tvm-tiles.json in the user's cache)")
    remote: str = option("", "user@host: measure a folder of deploy native there, over ssh")
    ssh_config: str = option("", "ssh configuration for --remote (port, key, host keys)")
