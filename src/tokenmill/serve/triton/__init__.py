"""Tokenmill inside a Triton Inference Server."""
