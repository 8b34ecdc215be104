"""TensorFlow Lite: the integers of a Q/DQ model as a .tflite file, its arithmetic in NumPy, and the runtimes' answers."""
