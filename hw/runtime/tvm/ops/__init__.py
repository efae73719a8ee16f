"""Operators of the import, one file per kind; a file with a dict `OPS` of handlers by ONNX name is found by itself."""
