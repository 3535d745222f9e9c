"""The sliced network as ONNX: the graph, its variants, and the check that they agree."""
