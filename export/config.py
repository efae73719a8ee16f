"""Every setting of `deploy export`."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.config import argument, option


@dataclass(frozen=True)
class ExportConfig:
    """Settings of the export to ONNX and QONNX."""

    model: str = argument("compressed folder, or a checkpoint (exported in float)", "")
    output: str = option("export", "folder to write", short="-o", identity=False)
    arch: str = option("", "architecture, where the file or the recipe does not name a known one")
    arch_arg: tuple[str, ...] = option((), "argument of the architecture, name=value")
    input_shape: str = option("", "input shape with batch, for checkpoints")
    dynamic_batch: bool = option(False, "leave the batch size open (FPGA builds want it fixed)")
    parity_samples: int = option(4, "fresh inputs for the parity checks", low=1)
    seed: int = option(0, "seed of the parity inputs", low=0, high=2**63 - 1)
    trust_pickle: bool = option(False, "run the code in a pickled checkpoint (only for files that you made)")
