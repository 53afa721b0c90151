"""What a model and a training phase are, as frozen values that count, check themselves and turn into JSON.

A `ModelConfig` without experts is a dense model; the same config with `attention` and/or `ffn` experts is a mixture.
Nothing here does I/O and nothing changes after construction: use `dataclasses.replace`.
Constraints live beside the fields (`problems`), so a recipe, a checkpoint and a Python caller get the same words.
`to_json` says everything; `identity` leaves out what is at its default, so that a new field changes no key.
"""

from bam_core.config.block import RopeScaling
from bam_core.config.data_plan import Adaptive, Anneal, shares_problems
from bam_core.config.distil import Distillation
from bam_core.config.experts import GATES, AttentionExperts, FFNExperts, Gate, KeysValues
from bam_core.config.model import LAYOUT_VERSION, ModelConfig
from bam_core.config.shared import SharedExperts
from bam_core.config.sparser import Sparser
from bam_core.config.training import TrainConfig

__all__ = [
    "GATES",
    "LAYOUT_VERSION",
    "Adaptive",
    "Anneal",
    "AttentionExperts",
    "Distillation",
    "FFNExperts",
    "Gate",
    "KeysValues",
    "ModelConfig",
    "RopeScaling",
    "SharedExperts",
    "Sparser",
    "TrainConfig",
    "shares_problems",
]
