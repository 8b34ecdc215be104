"""Repairing the damage of quantization: better integers for the weights, better biases, ranges that know both.

bits (how wide each layer is) > activations (what it reads) > walk (layer after layer) > unfold (what a layer sees) >
scales and rounding (its integers). Label-free: calibration images only.
"""
