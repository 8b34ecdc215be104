"""Refinement: better codes for the weights, better biases, activation ranges that know both.

activations (how each activation is stored and read) > reconstruct (layer after layer) > im2col (a layer's input as
patches) > layer, scales, rounding (its codes); equalize comes before calibration. distill then tunes all of it,
together, with torch_graph. No labels anywhere; calibration images only, but for distill.
"""
