"""A module that stands in for `tensorrt` over the old TensorRT 8.5.3.1, which runs plans where no newer one can."""
