"""Asks FINN for the expected cycles of hardware nodes: `python -m hw.fpga.finn_worker job.json result.json`;
or runs FINN's own build to a Zynq bitstream: `... build job.json`.

Run in a process of its own with FINN_BUILD_DIR set. The names that finn.xsi would load from Vivado are bound to a refusal.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def prepare() -> None:
    """Let finn-plus import where there is no Vivado."""
    import finn
    import finn.xsi

    root = Path(finn.__file__).parent
    os.environ.setdefault("FINN_RTLLIB", str(root / "finn-rtllib"))
    os.environ.setdefault("FINN_CUSTOM_HLS", str(root / "custom_hls"))

    class NoVivado:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("no Vivado simulator here")

    for name in finn.xsi._LAZY_NAMES:
        if name not in vars(finn.xsi):
            setattr(finn.xsi, name, NoVivado)


def build(job: dict[str, Any]) -> None:
    """FINN's own flow; needs Vivado and Vitis HLS. Its exit code becomes ours."""
    import finn.builder.build_dataflow as flow
    import finn.builder.build_dataflow_config as settings

    outputs = settings.DataflowOutputType
    config = settings.DataflowBuildConfig(
        output_dir=job["output"],
        synth_clk_period_ns=1000.0 / job["clock_mhz"],
        board=job["board"],
        target_fps=job["target_fps"] or None,
        shell_flow_type=settings.ShellFlowType.VIVADO_ZYNQ,
        generate_outputs=[outputs.ESTIMATE_REPORTS, outputs.BITFILE, outputs.PYNQ_DRIVER, outputs.DEPLOYMENT_PACKAGE],
    )
    sys.exit(flow.build_dataflow_cfg(job["model"], config))


def main() -> None:
    if sys.argv[1] == "build":
        build(json.loads(Path(sys.argv[2]).read_text()))
    prepare()
    from onnx.helper import make_node
    from qonnx.custom_op.registry import getCustomOp

    job = json.loads(Path(sys.argv[1]).read_text())
    found: dict[str, list[int]] = {}
    for layer, nodes in job.items():
        found[layer] = []
        for op, domain, attributes in nodes:
            node = make_node(
                op, ["x"], ["y"], domain=domain, name=f"{op}_{layer}", backend="fpgadataflow", **attributes
            )
            found[layer].append(int(getCustomOp(node).get_exp_cycles()))
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
