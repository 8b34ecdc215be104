"""Calibration: float model + training images -> a range and quantization parameters for every activation.

images (which images) > collect (runs the model) > observer (extremes and histograms) > cache > methods and error
(a range from the statistics) > calibrate (all of it) > report (ranges.csv and histograms.npz).
"""
