"""One BLAS thread, before anything imports NumPy: two on a busy machine wait for each other, ten times as long."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
