"""Everything that imports TensorRT or CUDA."""
