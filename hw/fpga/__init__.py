"""FPGA: a QONNX graph in, a design out that is simulated bit for bit, synthesized, and packaged for a board."""
