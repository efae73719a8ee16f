"""Every setting of `deploy compress`."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.config import argument, option


@dataclass(frozen=True)
class CompressConfig:
    """Settings of post-training compression; the same names serve as flags and as keys of a config file."""

    model: str = argument("checkpoint: .safetensors, .pt/.pth (weights) or .pt2 (torch.export)", "")
    output: str = option("compressed", "folder to write", short="-o", identity=False)
    bits: int = option(8, "weight bits, 2 to 8, or 32: weights stay float", low=2, high=32)
    act_bits: int = option(8, "activation bits, 4 to 8", low=4, high=8)
    arch: str = option(
        "", "architecture: timm:NAME, torchvision:NAME, deploy:NAME or pkg.mod:factory (wins over the file's)"
    )
    arch_arg: tuple[str, ...] = option((), "argument of the architecture, name=value")
    input_shape: str = option("", "input shape with batch, 1x3x224x224, or name=1x128:int64:30522;... for several")
    calib: str = option(
        "",
        "calibration data: image folder, .npz, .npy, pkg.mod:function, or 'random'; default: synthetic from BatchNorm",
    )
    prune: str = option(
        "",
        "remove units: optin (default recipe), optin-paper, vtrans (trains, needs --train), channels (convolutional networks); controls: fisher, activation, magnitude, random",
        choices=("", "optin", "optin-paper", "vtrans", "channels", "fisher", "activation", "magnitude", "random"),
    )
    macs: float = option(0.0, "share of the multiply-accumulates that may stay, 0 to 1, for --prune", low=0, high=1)
    params: float = option(
        0.0, "share of the parameters that may stay, 0 to 1, for --prune vtrans and channels", low=0, high=1
    )
    refit: bool = option(
        True, "after one-shot pruning, refit the output projections to the dense model (least squares, no labels)"
    )
    round_to: int = option(8, "pruned widths are multiples of this (neurons, hidden dimensions, channels)", low=1)
    controls: bool = option(
        True,
        "also prune by Fisher information, activation norm, magnitude and at random, and report their errors beside",
    )
    prune_tokens: bool = option(False, "also merge tokens, layer by layer (ViT, DeiT)")
    prune_vocabulary: bool = option(
        False, "remove embedding rows of tokens that neither --calib nor --train has; such tokens share one row"
    )
    variant: str = option(
        "full",
        "of --prune vtrans: masks and weights on all samples, on 3 % of them, or masks only",
        choices=("full", "fast", "faster"),
    )
    prune_epochs: float = option(4.0, "epochs of --prune vtrans over its samples, half of them for masks", low=0.01)
    prune_lr: float = option(2e-4, "step of the weights in --prune vtrans (AdamW)", low=0)
    calib_samples: int = option(300, "calibration samples", low=1)
    eval: str = option("", "labelled data for the accuracy at every stage (same forms as --calib)")
    eval_samples: int = option(10000, "evaluation samples at most", low=1)
    layer: tuple[str, ...] = option(
        (), "bits of the layers whose name matches: 'features.0.*=8', 'head=8/8' (weights/activations), 'stem=float'"
    )
    first_last_bits: int = option(8, "weight bits of the first and the last layer (at least --bits)", low=2, high=8)
    activations: str = option(
        "auto",
        "linear layers: static ranges or dynamic per run; auto: dynamic where linear layers dominate",
        choices=("auto", "static", "dynamic", "none"),
    )
    ranges: str = option("mse", "how activation ranges are chosen", choices=("mse", "percentile", "max"))
    rounding: str = option(
        "auto",
        "weight rounding; auto: gptq below 8 bits, nearest at 8",
        choices=("auto", "nearest", "gptq", "adaround"),
    )
    weight_scale: str = option(
        "auto", "weight scales; auto: mse below 8 bits, max at 8", choices=("auto", "max", "mse")
    )
    granularity: str = option(
        "channel", "weight scales per output channel or per tensor", choices=("channel", "tensor")
    )
    fold: bool = option(True, "fold BatchNorm into convolutions (per-channel scales keep this harmless)")
    equalize: str = option(
        "auto",
        "move range between layers; auto: activations into weights from 6 bits on, weights across layers with per-tensor scales",
        choices=("auto", "on", "off"),
    )
    bias_correction: str = option(
        "auto", "correct the mean error of quantized layers; auto: below 8 bits", choices=("auto", "on", "off")
    )
    budget: str = option(
        "", "choose the bits of every layer: size=0.3MB, accuracy=-0.5 (points), or luts=20000 with --board"
    )
    sensitivity: bool = option(False, "measure what 2, 4 and 8 bits cost in each layer (part of --budget)")
    trials: int = option(80, "trials of --budget, of all workers together", low=4)
    study: str = option(
        "",
        "Optuna storage of the trials (sqlite:///FILE or a server): resumable, shared by workers; default: memory",
        identity=False,
    )
    board: str = option("", "FPGA board of --budget luts=N")
    target_fps: float = option(0.0, "frames per second of the design in --budget luts=N; 0: the smallest design", low=0)
    finetune: bool = option(
        False, "train the quantized model against the float one (needs --train; labels are optional)"
    )
    train: str = option("", "training data for --finetune (same forms as --calib)")
    train_samples: int = option(100_000, "training samples at most; they are held in memory", low=2)
    epochs: int = option(8, "epochs of --finetune", low=1)
    batch: int = option(128, "training batch, of all processes together", low=1)
    micro_batch: int = option(
        0, "samples of one forward pass, gradients accumulate over the batch: less memory; 0: all", low=0
    )
    lr: float = option(0.01, "step of the weights in quantization steps (Adam, warm-up, cosine to zero)", low=0)
    scale_lr: float = option(1e-3, "step of scales, biases and the rest, relative to their size", low=0)
    augment: str = option("none", "augmentation of training images", choices=("none", "flip", "shift", "flip+shift"))
    temperature: float = option(2.0, "softening of the class scores that are distilled", low=0.1)
    label_weight: float = option(
        0.0, "share of the cross entropy with the labels in the loss, the rest is distillation", low=0, high=1
    )
    loss: str = option("", "loss as pkg.mod:function(student outputs, teacher outputs, labels or None)")
    metric: str = option("", "metric as pkg.mod:function(outputs, labels), higher is better; default: top-1, or dB")
    held_out: float = option(
        0.03, "share of --train that is not trained on but measured after every epoch", low=0.0001, high=0.5
    )
    stop_drop: float = option(
        -1.0, "stop when the held-out metric is within this many points of the float model's; negative: never"
    )
    save_every: int = option(
        200,
        "steps between saved training states (beside the output; a killed run goes on from there)",
        low=1,
        identity=False,
    )
    seed: int = option(0, "seed of everything random", low=0, high=2**63 - 1)
    trust_pickle: bool = option(False, "run the code in a pickled checkpoint (only for files that you made)")

    def __post_init__(self) -> None:
        """A board that decides nothing here (deploy all passes it to the build) must not make another result of this one."""
        if not self.budget or self.budget.startswith(("size=", "accuracy=")):
            object.__setattr__(self, "board", "")
            object.__setattr__(self, "target_fps", 0.0)
