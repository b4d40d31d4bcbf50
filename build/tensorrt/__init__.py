"""The network lowered to TensorRT, and plans built from it."""
