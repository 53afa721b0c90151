"""One thread per test process unless a test says otherwise: tiny models are faster so, and results repeat."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
