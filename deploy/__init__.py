"""From a trained PyTorch model to a bitstream or a fast runtime: the frame that the stages plug into."""

__version__ = "0.1.0"
