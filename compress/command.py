"""`deploy compress`: what the frame needs to know of this stage. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress.config import CompressConfig
from deploy.errors import UserError
from deploy.stage import Outcome, Requirement, Stage, lazy

PACKAGES = ("torch", "torchvision", "timm", "brevitas", "numpy", "safetensors")


def inputs(config: CompressConfig) -> dict[str, Path]:
    from deploy.arch import is_known
    from deploy.data import code_of, paths_of

    if not config.model:
        raise UserError("MODEL is missing: give a checkpoint, for example: deploy compress model.pt --bits 4")
    found = {"model": Path(config.model)}
    if ":" in config.arch and not is_known(config.arch):
        for path in code_of(config.arch).values():
            found["arch"] = path
    if found["model"].suffix == ".safetensors" and found["model"].with_name("config.json").is_file():
        found["config.json"] = found["model"].with_name("config.json")
    if config.budget:
        from compress.search.budget import parse

        parse(config.budget)
    check(config)
    for flag in ("calib", "eval", "train"):
        for path in paths_of(getattr(config, flag)).values():
            found[flag] = path
    for flag in ("loss", "metric"):
        for path in code_of(getattr(config, flag)).values() if getattr(config, flag) else ():
            found[flag] = path
    return found


def check(config: CompressConfig) -> None:
    """Settings that exclude each other. Raises UserError."""
    if 8 < config.bits < 32:
        raise UserError(f"--bits takes 2 to 8, or 32 for float weights; it is {config.bits}")
    if config.bits == 32 and (config.finetune or config.budget or config.sensitivity):
        raise UserError(
            "--bits 32 quantizes nothing, so there is nothing for --finetune, --budget or --sensitivity; give 2 to 8 bits"
        )
    trains = config.prune == "vtrans"
    if config.train and not (config.finetune or trains or config.prune == "channels"):
        raise UserError("--train is for --finetune; give both or neither")
    if trains and not config.train:
        raise UserError("--prune vtrans trains its masks; give --train DATA (labels are optional)")
    if config.prune and not (0 < config.macs < 1 or 0 < config.params < 1):
        raise UserError(
            "--prune wants a target: give --macs 0.6 (share of the multiply-accumulates that stays)"
            + (" or --params 0.3" if trains else "")
        )
    if config.prune in ("vtrans", "channels") and config.prune_tokens:
        raise UserError(f"--prune-tokens goes with the one-shot methods, not with --prune {config.prune}; leave it out")
    if config.prune == "channels" and config.prune_vocabulary:
        raise UserError("--prune-vocabulary is for encoders of text, not for --prune channels; leave it out")
    if config.variant != "full" and not trains:
        raise UserError("--variant belongs to --prune vtrans; leave it out")
    if config.prune and config.macs and config.params:
        raise UserError("--macs and --params are two targets; give one")
    if config.params and config.prune not in ("vtrans", "channels"):
        raise UserError("--params is a target of --prune vtrans and channels; give --macs for the others")
    if not config.prune and (config.macs or config.params or config.prune_tokens or config.prune_vocabulary):
        raise UserError(
            "--macs, --params, --prune-tokens and --prune-vocabulary belong to --prune METHOD; give one, for example --prune optin"
        )


def plan(config: CompressConfig) -> list[str]:
    from compress.quantize.plan import parse_overrides

    parse_overrides(config.layer)
    calib = config.calib or "synthetic inputs from the BatchNorm statistics (weights only where there is no BatchNorm)"
    return [
        f"load {config.model}" + (f" as {config.arch}" if config.arch else ""),
        "merge training-time branches" + (", fold BatchNorm" if config.fold else ""),
        *(
            [
                f"prune by {config.prune} to {config.macs or config.params:g} of the {'MACs' if config.macs else 'parameters'}"
            ]
            if config.prune
            else []
        ),
        "weights stay float"
        if config.bits == 32
        else f"quantize weights to {config.bits} bits and activations to {config.act_bits} bits, calibrated on {calib}",
        *(
            [f"train {config.epochs} epochs on {config.train or 'the training data'} against the float model"]
            if config.finetune
            else []
        ),
        *([f"measure accuracy on {config.eval}"] if config.eval else []),
        f"write {config.output}",
    ]


def _pruned(row: dict[str, Any]) -> str:
    """What was removed, and how the method stands beside the controls."""
    text = f"pruned by {row['method']}: {row['macs_left'] * 100:.1f} % of the MACs and {row['parameters_left'] * 100:.1f} % of the parameters stay ({row['seconds']:.0f} s)"
    errors = dict(row.get("output_error", {}))
    if errors:
        own = errors.pop(row["method"])
        text += f"; output error {own:.2g}, controls: " + ", ".join(
            f"{n} {v:.2g}" for n, v in sorted(errors.items(), key=lambda p: p[1])
        )
    return text


def describe(summary: dict[str, Any], folder: Path) -> Outcome:
    lines = [
        summary["notice"],
        f"{summary['architecture']}: {summary['quantized_layers']} layers quantized "
        f"({', '.join(f'{n} at {b} bits' for b, n in summary['layers_by_bits'].items())}), {summary['activation_quantizers']} activation ranges, "
        f"{summary['folded']} BatchNorms folded"
        + (f", {summary['left_in_float']} layers left in float" if summary["left_in_float"] else ""),
        f"size {summary['float_bytes'] / 1e6:.2f} MB -> {summary['bytes'] / 1e6:.2f} MB ({summary['float_bytes'] / summary['bytes']:.2f}x smaller)",
    ]
    if summary.get("prune"):
        lines.insert(1, _pruned(summary["prune"]))
    accuracy, tuned = summary.get("accuracy", {}), summary.get("finetune", {})
    if summary.get("search"):
        lines.append(
            f"bits chosen for {summary['search']['budget']}: {summary['search']['trials']} trials, estimated {summary['search']['cost']} {summary['search']['value']:,.0f}"
        )
    if tuned:
        lines.append(
            f"fine-tuned for {tuned['epochs']} epochs ({tuned['steps']:,} steps, {tuned['samples']:,} samples{', stopped early' if tuned['stopped_early'] else ''})"
        )
    if "compressed_percent" in accuracy:
        before = summary.get("ptq_accuracy", {})
        lines.append(
            f"accuracy float {accuracy['float_percent']:.2f} % -> "
            + (f"post-training {before['compressed_percent']:.2f} % -> fine-tuned" if before else "compressed")
            + f" {accuracy['compressed_percent']:.2f} % ({int(accuracy['samples'])} samples)"
        )
    elif "cosine" in accuracy:
        lines.append(
            f"cosine to the float model's vectors {accuracy['cosine']:.4f} ({int(accuracy['samples'])} samples)"
        )
    elif "agreement_percent" in accuracy:
        lines.append(
            f"same class as the float model on {accuracy['agreement_percent']:.1f} % of {int(accuracy['samples'])} calibration samples"
        )
    return Outcome(tuple(lines), next=f"deploy export {folder} -o {folder.parent / 'export'}")


STAGE = Stage(
    name="compress",
    help="make a trained model small: fold, merge, quantize",
    config=CompressConfig,
    inputs=inputs,
    plan=plan,
    run=lazy("compress.stage:run_stage"),
    describe=describe,
    section=lazy("compress.section:section"),
    check=lazy("compress.stage:check_folder"),
    order=10,
    packages=PACKAGES,
    requirements=(
        Requirement("torch", "package", "nothing", "pip install torch"),
        Requirement("brevitas", "package", "no quantization", "pip install brevitas"),
        Requirement("timm", "package", "no timm architectures", "pip install timm"),
        Requirement(
            "transformers", "package", "no transformers architectures", "pip install 'deploy-toolchain[transformers]'"
        ),
        Requirement("torch_pruning", "package", "no --prune channels", "pip install 'deploy-toolchain[prune]'"),
        Requirement("torchvision", "package", "no torchvision architectures", "pip install torchvision"),
    ),
)
