"""TensorFlow Lite: a Q/DQ model's integers as a .tflite file and as C, its arithmetic in NumPy, and the runtimes."""
