"""Float model + calibration images -> quantized model."""
