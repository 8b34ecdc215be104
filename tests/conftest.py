"""What all tests need of their process: one BLAS thread, and a Ctrl-C that its children can receive.

Two BLAS threads on a busy machine wait for each other, ten times as long. A shell starts what runs in its background
with SIGINT ignored, which children would inherit.
"""

import os
import signal

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before anything imports NumPy
signal.signal(signal.SIGINT, signal.default_int_handler)
