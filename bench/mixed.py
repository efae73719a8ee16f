"""Mixed precision against uniform 4 bits at the same size, on the 10,000 Fashion-MNIST test images.

    python -m bench.mixed [--trials 80]      -> bench/mixed.json

Two networks: the demonstration CNN and MobileNetV2 0.35 (trained by bench/finetune.py). Uniform: 4 bits, first and last layer 8
(the default). Mixed: `--budget size=` the uniform file's size, three seeds of the search; both with the same second-order
rounding, no fine-tuning. Also at 85 % of that size, which no uniform width reaches. The search sees 320 unlabelled images.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.common import save, stamp
from bench.finetune import ROOT, SPECS, batches, demo, images, trained_mobilenet
from compress import recipe
from compress.api import compress
from compress.config import CompressConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=80)
    parser.add_argument("--float-epochs", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(2)
    test = batches(*images("t10k"))
    calib = np.load(Path(ROOT) / "examples" / "fashion" / "calib.npz")["x"].astype(np.float32) / 255
    calibration = batches(torch.from_numpy(calib), None, 32)
    rows: list[dict[str, Any]] = []
    for name, net in (("fashion_cnn", demo()), ("mobilenetv2_035", trained_mobilenet(args.float_epochs))):
        for act in (8, 4):

            def measure(config: CompressConfig, **more: Any) -> int:
                done = compress(net, config, inputs=SPECS, calibration=calibration, evaluation=test)  # noqa: B023
                size = recipe.stored_bytes(recipe.state_of(done.module))
                row = {
                    "network": name, "activations": act, **more, "bytes": size, "float": done.record["accuracy"]["float_percent"],  # noqa: B023
                    "top1": done.record["accuracy"]["compressed_percent"], "agreement": done.record["accuracy"]["agreement_percent"],
                    "sqnr_db": round(done.record["accuracy"]["sqnr_db"], 2),
                }  # fmt: skip
                rows.append(row)
                print(row, flush=True)
                save("mixed", {**stamp(), "trials": args.trials, "rows": rows})
                return size

            uniform = measure(CompressConfig(bits=4, act_bits=act), how="uniform 4 bit")
            for share in (1.0, 0.85):
                for seed in range(3 if share == 1.0 else 1):
                    budget = f"size={int(uniform * share)}B"
                    measure(
                        CompressConfig(bits=4, act_bits=act, budget=budget, trials=args.trials, seed=seed),
                        how=f"mixed at {share:.0%}",
                        seed=seed,
                    )


if __name__ == "__main__":
    main()
