"""ONNX in, a running target out: CPU/GPU runtimes and their latency; FPGA designs."""
