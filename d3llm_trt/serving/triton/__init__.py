"""Triton Inference Server: a model repository for an engine directory, and the model in it."""
