"""CUDA kernels and their faces for Python: torch ops, and the C structs; the plain C and TensorRT faces are beside."""
