"""ONNX graphs: what runs them, and what can be read from them."""
