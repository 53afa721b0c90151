"""What a model and a training phase are, as frozen values that count, check themselves and turn into JSON.

A `ModelConfig` without experts is a dense model; the same config with `attention` and/or `ffn` experts is a mixture.
Nothing here does I/O and nothing changes after construction: use `dataclasses.replace`.
Constraints live beside the fields (`problems`), so a recipe, a checkpoint and a Python caller get the same words.
`to_json` says everything; `identity` leaves out what is at its default, so that a new field changes no key.
"""

from bam_core.config.experts import GATES, AttentionExperts, FFNExperts, Gate, KeysValues
from bam_core.config.model import LAYOUT_VERSION, ModelConfig
from bam_core.config.training import TrainConfig, shares_problems

__all__ = [
    "GATES",
    "LAYOUT_VERSION",
    "AttentionExperts",
    "FFNExperts",
    "Gate",
    "KeysValues",
    "ModelConfig",
    "TrainConfig",
    "shares_problems",
]
