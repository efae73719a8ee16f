"""Quantization: schemes (Brevitas), placement of quantizers, ranges, weight scales, rounding, bias correction."""
