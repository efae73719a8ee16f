"""Graph passes from QONNX to what runtimes run: one pass per file."""
