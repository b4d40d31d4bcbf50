"""Our plans built and run by TensorRT 8.5.3.1 on a GPU, through the bridge in ``tests/support/tensorrt85``."""
