"""Calibration: float model + training images -> a range for every activation, with its scale and zero point.

images (which images) > tensors (which activations) > stream (runs the model) > observer (extremes and histograms) >
cache > methods, entropy, error (a range from what was observed) > grid (scale and zero point) > engine (all of it).
"""
