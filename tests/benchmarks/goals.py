"""What was to be reached, row by row: the figures of docs/performance.md, known by a short name in every result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """reference: what there was to compare with. at: the goal; None where each entry of a result brings its own."""

    figure: str
    reference: str
    at: float | None
    at_most: bool = False
    unit: str = "ratio"

    def is_met(self, value: float, of_entry: float | None = None, low: float | None = None) -> bool | None:
        """None without a goal. An exponent meets its goal if its spread reaches down to it."""
        goal = self.at if of_entry is None else of_entry
        if goal is None:
            return None
        if self.at_most:
            return (value if low is None or self.unit != "exponent" else low) <= goal
        return value >= goal


GENERATE = "transformers' `generate` = 1"
ORDER = "the algorithm's order"


def _growth(what: str) -> Goal:
    return Goal(f"growth: step time in {what}", ORDER, None, at_most=True, unit="exponent")


def _tokens_per_s(what: str, model: str, batch: int) -> Goal:
    return Goal(f"{what}, {model}, batch {batch}: tokens/s over transformers'", GENERATE, 1.5)


GOALS = {
    "dense_step": Goal(
        "dense training step: FLOP/s over those of the machine's own bf16 matrix product",
        "transformers about 0.5; a sketch 0.53",
        0.70,
    ),
    "bam_step": Goal("BAM training step: FLOP/s over the dense model's", "a sketch 0.57", 0.90),
    "btx_step": Goal("BTX training step: FLOP/s over the dense model's", "a sketch 0.54", 0.90),
    "btx_over_cohere2_moe": Goal(
        "BTX top-2: training tokens/s over transformers' cohere2_moe at its best setting, same weights",
        "a sketch 1.08",
        1.5,
    ),
    "bam_over_composition": Goal(
        "BAM: training tokens/s over transformers' own modules composed to compute the same, same weights",
        "not measured before",
        2.0,
    ),
    "decode_bam_over_btx": Goal(
        "decoding: latency of BAM over BTX, divided by the ratio of the bytes that each must read",
        "paper: 1.28 and 1.24 undivided, on a TPU",
        1.10,
        at_most=True,
    ),
    "decode_dense_b1": _tokens_per_s("decoding", "dense", 1),
    "decode_dense_b16": _tokens_per_s("decoding", "dense", 16),
    "prefill_dense_b1": _tokens_per_s("prefill", "dense", 1),
    "prefill_dense_b16": _tokens_per_s("prefill", "dense", 16),
    "decode_btx_b1": _tokens_per_s("decoding", "BTX", 1),
    "decode_btx_b16": _tokens_per_s("decoding", "BTX", 16),
    "prefill_btx_b1": _tokens_per_s("prefill", "BTX", 1),
    "prefill_btx_b16": _tokens_per_s("prefill", "BTX", 16),
    "mix_over_cp": Goal("mixing: bytes written per second over `cp` of the same bytes", "mergekit-moe", 0.7),
    "mix_peak_memory": Goal(
        "mixing: peak memory over the largest tensor times (E + 2)", "mergekit-moe", 1.0, at_most=True
    ),
    "tokenise_over_datasets": Goal(
        "tokenise, pack and write: MB/s over `datasets.map` with the same tokenizer and workers", "1", 1.5
    ),
    "data_wait": Goal("share of a training step spent waiting for data", "", 0.01, at_most=True, unit="share"),
    "pipeline_overhead": Goal(
        "pipeline: wall time over the sum of its stages' compute",
        "a trivial Ray Train run of one worker costs 7 to 9 s",
        1.25,
        at_most=True,
    ),
    "reused_s": Goal("a run of which everything is reused", "", 5.0, at_most=True, unit="s"),
    "checkpoint_share": Goal("checkpoints, one a minute: share of training time", "", 0.02, at_most=True, unit="share"),
    "growth_experts": _growth("experts"),
    "growth_context": _growth("context"),
    "growth_width": _growth("width"),
    "growth_vocabulary": _growth("vocabulary"),
    "growth_plan": Goal("growth: plan time in stages", ORDER, None, at_most=True, unit="exponent"),
    "gpu_dense": Goal(
        "GPU, paper's small size, 8k context: dense step, FLOP/s over the device's own matrix product",
        "dense 7B at 0.53 to 0.58",
        0.50,
    ),
    "gpu_bam": Goal("GPU, the same: BAM step", "", 0.45),
    "plan_time": Goal(
        "planner: predicted over measured seconds of the stage that is furthest off, or the inverse",
        "",
        1.25,
        at_most=True,
    ),
    "plan_memory": Goal("planner: the same of the peak memory of trainings", "", 1.15, at_most=True),
}
