"""nn.Module in, ONNX and QONNX out, with parity shown against torch and against the integer reference."""
