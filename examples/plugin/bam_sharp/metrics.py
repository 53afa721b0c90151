"""A metric: how a model does on the documents that it finds hardest."""

from __future__ import annotations

import numpy as np

from bam_core.evaluate.metric import Judged


def worst_tenth(judged: Judged) -> float:
    """Bits per byte of the tenth of the documents that have the most of them; at least one document."""
    scored = judged.scored
    bits = scored.nll / np.log(2) / np.maximum(1, scored.n_bytes)
    worst = np.sort(bits)[-max(1, len(bits) // 10) :]
    return float(worst.mean())
