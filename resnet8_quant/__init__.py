"""Post-training quantization experiments on ResNet8 with ONNX Runtime."""

__version__ = "0.1.0"
