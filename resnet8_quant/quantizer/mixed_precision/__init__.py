"""Mixed precision: which layer gets how many bits.

sensitivity (the cost of each bit width for one layer alone) > allocation (the best bit widths under a limit). As in
HAWQ-V2 (Dong et al., arXiv 1911.03852) and HAWQ-V3 (Yao et al., arXiv 2011.10680): sensitivities that may be added
up, and an integer program; here they are measured, not estimated from Hessian traces.
"""
