"""Reading and rewriting an exported ONNX graph."""
