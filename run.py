"""Quantize a model and measure what that costs: ``python run.py quant=int8``; ``python run.py --help`` says more."""

from __future__ import annotations

import sys

from resnet8_quant.cli import main

if __name__ == "__main__":
    sys.exit(main())
