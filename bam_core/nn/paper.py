"""What the paper's Tables 7, 9 and 10 print about sizes and FLOPs, and every place where they are wrong.

BAM, arXiv 2408.08274, small model (Table 8). The tables are copied as printed; `right_*` computes the same figures by
`costs`. Invariant: where the two differ, and only there, an `Erratum` names the place, the right value and the cause.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.nn.costs import flops_by_operation, params_by_component, params_total

CONTEXT = 256
"""Positions that a token attends to in Table 7."""

FUSED_WIDTH, FUSED_WIDTH_PRINTED = 4096, 4098
"""Gate and up together (Table 8), and the typing error in it that Table 7 was computed with."""

SMALL = ModelConfig(
    vocab_size=256_000,
    d_model=1024,
    n_layers=6,
    n_heads=8,
    n_kv_heads=8,
    d_ff=FUSED_WIDTH // 2,
    max_seq_len=2048,  # not in the paper, and in no count
    tie_embeddings=False,
)
LARGE = ModelConfig(
    vocab_size=256_000, d_model=2304, n_layers=18, n_heads=18, n_kv_heads=6, d_ff=9216, max_seq_len=2048
)


def bam(kv: str = "expert", dense: ModelConfig = SMALL) -> ModelConfig:
    """Four experts: soft attention, top-1 FFN (section 4)."""
    attention = AttentionExperts(4, 4, "shared" if kv == "shared" else "expert")
    return replace(dense, attention=attention, ffn=FFNExperts(4), experts=_names(4))


def btx(n_experts: int = 4, top_k: int = 1, dense: ModelConfig = SMALL) -> ModelConfig:
    """The baseline: FFN experts only. Beyond four they are copies of the seed (section 7.1)."""
    return replace(dense, ffn=FFNExperts(n_experts, top_k), experts=_names(n_experts))


def _names(n: int) -> tuple[str, ...]:
    return tuple(f"expert{i + 1}" for i in range(n))


METHODS = {"dense": SMALL, "bam": bam(), "bam_shared_kv": bam("shared"), "btx": btx(), "btx_top3of6": btx(6, 3)}

TABLE_9: Mapping[str, Mapping[str, int]] = {
    # Rows up to `router`: parameters of one block that a token uses. Then those of the whole model.
    "layernorm": dict.fromkeys(METHODS, 1024),
    "attn_out": dict.fromkeys(METHODS, 1_048_576) | {"bam": 4_194_304, "bam_shared_kv": 4_194_304},
    "qkv_proj": dict.fromkeys(METHODS, 3_145_728) | {"bam": 12_582_912, "bam_shared_kv": 4_194_304},
    "ffn_exp": dict.fromkeys(METHODS, 4_194_304) | {"btx_top3of6": 12_582_912},
    "ffn_red": dict.fromkeys(METHODS, 2_097_152) | {"btx_top3of6": 6_291_456},
    "router": dict.fromkeys(METHODS, 4096) | {"dense": 0},
    "input_embedding": dict.fromkeys(METHODS, 262_144_000),
    "output_embedding": dict.fromkeys(METHODS, 262_144_000),
    "final_layernorm": dict.fromkeys(METHODS, 1024),
    "active": {
        "dense": 587_209_728,
        "bam": 662_731_776,
        "bam_shared_kv": 612_400_128,
        "btx": 587_234_304,
        "btx_top3of6": 662_731_776,
    },
    "total": {
        "dense": 587_209_728,
        "bam": 776_002_560,
        "bam_shared_kv": 738_253_824,
        "btx": 700_480_512,
        "btx_top3of6": 700_480_512,
    },
}

TABLE_7: Mapping[str, Mapping[str, int]] = {
    # FLOPs per token and layer at `CONTEXT`; the routers' are in `total` alone.
    "attention": {"bam": 35_651_584, "btx": 8_912_896, "btx_top3of6": 8_912_896},
    "ffn": {"bam": 12_589_056, "btx": 12_589_056, "btx_top3of6": 37_767_168},
    "total": {"bam": 48_257_024, "btx": 21_510_144, "btx_top3of6": 46_692_352},
}

TABLE_10: Mapping[str, Mapping[str, str]] = {
    # Formulas per layer, in Python's notation: n experts, top k, width d (also of all heads), fused FFN width f,
    # context c. "-" in the paper is 0 here.
    "attention_router": {"btx_params": "0", "btx_flops": "0", "bam_params": "n*d", "bam_flops": "2*n*d"},
    "qkv": {"btx_params": "d*3*d", "btx_flops": "6*d**2", "bam_params": "n*d*3*d", "bam_flops": "6*n*d**2"},
    "mask": {"btx_params": "0", "btx_flops": "2*c*d", "bam_params": "0", "bam_flops": "2*n*c*d"},
    "projection": {"btx_params": "d*d", "btx_flops": "2*d**2", "bam_params": "n*d*d", "bam_flops": "2*n*d**2"},
    "ffn_router": {"btx_params": "n*d", "btx_flops": "2*n*d", "bam_params": "n*d", "bam_flops": "2*n*d"},
    "ffn": {"btx_params": "1.5*n*d*f", "btx_flops": "3*k*d*f", "bam_params": "1.5*n*d*f", "bam_flops": "3*k*d*f"},
}

TOTALS_BY_EXPERTS = {4: 700_480_512, 5: 738_235_392, 6: 775_990_272, 7: 813_745_152, 8: 851_500_032}
"""Parameters of BTX with copies of the seed: Table 4 prints their millions."""


@dataclass(frozen=True)
class Erratum:
    """One place where the paper is wrong. printed, right: None where it is no number."""

    table: int
    row: str
    method: str
    printed: int | None
    right: int | None
    why: str


_ONE_ROUTER = "one router is counted; BAM has two per layer, as the table's total says"
_NO_KV = "the shared keys and values, 2 * d_model^2 per layer, are left out"
_FOUR_ROWS = "four router rows are counted; six experts have six"
_4098 = "computed with a fused FFN width of 4098; Tables 8 and 9 have 4096"

ERRATA: tuple[Erratum, ...] = (
    Erratum(9, "router", "bam", 4096, 8192, _ONE_ROUTER),
    Erratum(9, "router", "bam_shared_kv", 4096, 8192, _ONE_ROUTER),
    Erratum(9, "router", "btx_top3of6", 4096, 6144, _FOUR_ROWS),
    Erratum(9, "qkv_proj", "bam_shared_kv", 4_194_304, 6_291_456, _NO_KV),
    Erratum(9, "active", "bam", 662_731_776, 662_756_352, _ONE_ROUTER),
    Erratum(9, "active", "bam_shared_kv", 612_400_128, 625_007_616, f"{_ONE_ROUTER}; {_NO_KV}"),
    Erratum(9, "active", "btx_top3of6", 662_731_776, 662_744_064, _FOUR_ROWS),
    Erratum(9, "total", "btx_top3of6", 700_480_512, 775_990_272, "the total of four experts is repeated; it has six"),
    Erratum(7, "ffn", "bam", 12_589_056, 12_582_912, _4098),
    Erratum(7, "ffn", "btx", 12_589_056, 12_582_912, _4098),
    Erratum(7, "ffn", "btx_top3of6", 37_767_168, 37_748_736, _4098),
    Erratum(7, "total", "bam", 48_257_024, 48_250_880, _4098),
    Erratum(7, "total", "btx", 21_510_144, 21_504_000, _4098),
    Erratum(7, "total", "btx_top3of6", 46_692_352, 46_673_920, _4098),
    Erratum(10, "qkv", "", None, None, "3 * d_attn has as many key heads as query heads; the large model has 6 of 18"),
    Erratum(10, "mask", "", None, None, "the product with the values, as many FLOPs as the scores, is not counted"),
    Erratum(2, "average", "", None, None, "mean of code, law and math; Table 1's average has Pretrain in it"),
    Erratum(3, "last row", "bam_shared_kv", None, None, "is labelled DM like the row above it; it is CM"),
)

TABLE_2: Mapping[str, tuple[float, float, float, float, float]] = {
    # Perplexity of the large models: pretrain, code, law, math, average.
    "base": (9.83, 2.41, 3.86, 3.71, 3.33),
    "code expert": (15.39, 2.18, 5.22, 4.34, 3.91),
    "law expert": (32.69, 6.84, 3.09, 8.61, 6.18),
    "math expert": (20.32, 3.20, 5.11, 3.20, 3.84),
    "btx": (10.35, 2.40, 3.76, 3.64, 3.27),
    "bam DM": (10.11, 2.36, 3.66, 3.55, 3.19),
    "bam CM": (10.19, 2.37, 3.69, 3.57, 3.21),
    "bam_shared_kv DM": (10.20, 2.37, 3.69, 3.59, 3.22),
    "bam_shared_kv CM": (10.28, 2.38, 3.72, 3.61, 3.24),
}


def right_table_9(config: ModelConfig) -> dict[str, int]:
    """The rows of Table 9, by our count."""
    parts = params_by_component(config)
    active = {name: part["active"] for name, part in parts.items()}
    L, D = config.n_layers, config.d_model
    return {
        "layernorm": (active["norms"] - D) // L,
        "attn_out": active["outputs"] // L,
        "qkv_proj": sum(active[name] for name in ("queries", "keys", "values")) // L,
        "ffn_exp": active["ffn"] // L * 2 // 3,
        "ffn_red": active["ffn"] // L // 3,
        "router": (active.get("attention_router", 0) + active.get("ffn_router", 0)) // L,
        "input_embedding": active["embedding"],
        "output_embedding": active.get("head", active["embedding"]),
        "final_layernorm": D,
        "active": sum(active.values()),
        "total": params_total(config),
    }


def right_table_7(config: ModelConfig, fused_width: int | None = None) -> dict[str, int]:
    """The rows of Table 7, in the paper's convention; with another fused FFN width where one is given."""
    if fused_width is not None:
        config = replace(config, d_ff=fused_width // 2)
    flops = flops_by_operation(config, CONTEXT, paper=True, layer=0)
    attention = sum(flops[name] for name in ("queries", "keys", "values", "scores", "outputs"))
    return {"attention": attention, "ffn": flops["ffn"], "total": sum(flops.values())}


def comparison(config: ModelConfig) -> dict[str, Any] | None:
    """What a plan says about a model of the paper's small shape; None for any other, or where layers differ.

    flops_per_token_and_layer: right, in the paper's convention. flops_as_printed: with the paper's 4098. printed:
    Table 9's counts, for the models that it has. notes: the errors in what it prints of this model.
    """
    sized = _sized(config)
    if replace(sized, attention=None, ffn=None) != SMALL or not _like_the_papers(sized):
        return None
    methods = [name for name, method in METHODS.items() if _sized(method) == sized]
    printed = {name: TABLE_9[name][method] for method in methods for name in ("total", "active")}
    errata = [erratum for erratum in ERRATA if erratum.method in methods]
    return {
        "context": CONTEXT,
        "flops_per_token_and_layer": right_table_7(config)["total"],
        "flops_as_printed": right_table_7(config, FUSED_WIDTH_PRINTED)["total"],
        "printed": printed,
        "notes": [f"Table {e.table}, {e.row}: {_change(e)}{e.why}" for e in errata],
    }


def _change(erratum: Erratum) -> str:
    return "" if erratum.printed is None else f"{erratum.printed:,} should be {erratum.right:,}: "


def _like_the_papers(config: ModelConfig) -> bool:
    """Every layer is alike, and every FFN expert is as wide as the seed's: then Table 7's rows have a meaning."""
    attention, ffn = config.attention, config.ffn
    return (attention is None or attention.layers is None) and (
        ffn is None or (ffn.layers is None and not ffn.soft_layers and ffn.split == 1)
    )


def _sized(config: ModelConfig) -> ModelConfig:
    """What counts: without what changes no size, such as which dense model is behind an expert."""
    return replace(
        config,
        attention=None if config.attention is None else replace(config.attention, slots=()),
        ffn=None if config.ffn is None else replace(config.ffn, slots=(), gain=()),
        experts=(),
        max_seq_len=SMALL.max_seq_len,
        norm=SMALL.norm,
        norm_eps=SMALL.norm_eps,
        rope_theta=SMALL.rope_theta,
    )
