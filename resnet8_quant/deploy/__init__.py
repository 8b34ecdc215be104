"""A quantized model rewritten for the integer kernels of a processor, without a change of what it computes.

In: a Q/DQ model. Out: the same model in the operators that ONNX Runtime runs.
"""
