"""`python -m tests.benchmarks.decode`: our `generate` beside transformers', and BAM's decoding beside BTX's.

The same weights on both sides (their logits are compared first), prompts of 128 tokens, 64 new ones, greedy, bf16; both
generate from the same prompts, in turn. Prefill is generating one token; decoding is what 64 more take. Ours has a
`Decoder` that is kept from call to call, as whoever serves a model has: its matrices are packed once, which is not
timed; a first call alone is measured beside it. BAM over BTX is at a width at which reading weights takes the time, and
over the ratio of bytes that each must read for a token. The result is `.bench/decode.json`.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CohereConfig, CohereForCausalLM

from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.nn.costs import cache_bytes_per_token, decoding_bytes
from bam_core.nn.decode import Decoder
from bam_core.nn.generate import generate
from bam_core.nn.lm import LM
from tests.benchmarks import peer_models
from tests.benchmarks.result import OUT, write_result
from tests.benchmarks.timing import Work, entry, interleaved, ratios

DENSE = ModelConfig(4096, 512, 6, 8, 8, 1408, 256, norm="layer", rotary_pairs="interleaved")
WIDE = ModelConfig(4096, 2048, 2, 16, 16, 5632, 256)
PROMPT, NEW = 128, 64
MANY = 10_000
"""Steps that a decoder is made for: so many that packing pays."""
BATCHES = (1, 16)
PEERS: dict[str, Callable[[ModelConfig], ModelConfig]] = {"dense": lambda dense: dense, "btx": peer_models.btx}


def prompts(batch: int) -> Tensor:
    return torch.randint(DENSE.vocab_size, (batch, PROMPT), generator=torch.Generator().manual_seed(batch))


def pair(kind: str) -> tuple[LM, nn.Module]:
    """Ours and theirs, of one function; both in bf16. Raises SystemExit if their logits differ."""
    ours = peer_models.our_model(PEERS[kind](DENSE))
    with torch.no_grad():
        theirs = cohere(ours) if kind == "dense" else peer_models.public_model(ours, ("eager", "sdpa"))
        theirs.eval()
        peer_models.require_equal(ours.eval(), theirs, prompts(2))
    return ours, theirs


def cohere(ours: LM) -> nn.Module:
    """The dense Cohere with our weights, in float32."""
    config = ours.config
    theirs = CohereForCausalLM(
        CohereConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            intermediate_size=config.d_ff,
            max_position_embeddings=config.max_seq_len,
            logit_scale=1.0,
            rope_parameters=peer_models.ROPE,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    theirs.model.embed_tokens.weight.data.copy_(ours.embed.weight)
    theirs.model.norm.weight.data.copy_(ours.norm.weight)
    for block, layer in zip(ours.blocks, theirs.model.layers, strict=True):
        layer.input_layernorm.weight.data.copy_(block.norm.weight)
        for name in "qkv":
            getattr(layer.self_attn, f"{name}_proj").weight.data.copy_(getattr(block.attn, f"w_{name}"))
        layer.self_attn.o_proj.weight.data.copy_(block.attn.w_o.T)
        layer.mlp.gate_proj.weight.data.copy_(block.ffn.w_gate)
        layer.mlp.up_proj.weight.data.copy_(block.ffn.w_up)
        layer.mlp.down_proj.weight.data.copy_(block.ffn.w_down.T)
    return theirs


def kept(model: LM, batch: int) -> Decoder:
    return Decoder(model, rows=batch, steps=MANY)


def ours_generates(model: LM | Decoder, tokens_BT: Tensor, n_new: int) -> Work:
    return lambda: generate(model, list(tokens_BT), n_new)


def theirs_generates(model: nn.Module, tokens_BT: Tensor, n_new: int) -> Work:
    mask = torch.ones_like(tokens_BT)
    options = {
        "max_new_tokens": n_new,
        "min_new_tokens": n_new,
        "do_sample": False,
        "use_cache": True,
        "pad_token_id": 0,
    }
    return lambda: model.generate(tokens_BT, attention_mask=mask, **options)


def over_transformers(kind: str, rounds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The details and the table's entries of one kind of model, both batches."""
    ours, theirs = pair(kind)
    details, table = [], []
    for batch in BATCHES:
        tokens, decoder = prompts(batch), kept(ours, batch)
        works = {
            "ours, first call": ours_generates(ours, tokens, 1),
            "ours, prefill": ours_generates(decoder, tokens, 1),
            "ours, all": ours_generates(decoder, tokens, 1 + NEW),
            "theirs, prefill": theirs_generates(theirs, tokens, 1),
            "theirs, all": theirs_generates(theirs, tokens, 1 + NEW),
        }
        times = interleaved(works, rounds)
        found = {f"{side}, prefill": times[f"{side}, prefill"] for side in ("ours", "theirs")}
        for side in ("ours", "theirs"):
            found[f"{side}, decode"] = [
                a - b for a, b in zip(times[f"{side}, all"], times[f"{side}, prefill"], strict=True)
            ]
        for phase, n_tokens in (("prefill", batch * PROMPT), ("decode", batch * NEW)):
            speeds = {side: n_tokens / statistics.median(found[f"{side}, {phase}"]) for side in ("ours", "theirs")}
            note = ", ".join(f"{side} {speed:,.0f} tokens/s" for side, speed in speeds.items())
            if phase == "prefill":
                first = statistics.median(ratios(found["theirs, prefill"], times["ours, first call"]))
                note += f"; ours without a decoder that is kept {first:.2f} times theirs"
            values = ratios(found[f"theirs, {phase}"], found[f"ours, {phase}"])
            table.append(entry(f"{phase}_{kind}_b{batch}", values, "ratio", note))
            details.append({"model": kind, "batch": batch, "phase": phase, "tokens_per_s": speeds})
    return details, table


def bam_over_btx(rounds: int, n_new: int = 16) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time of a token of one row, of BAM over BTX, over the ratio of the bytes that each must read for it."""
    btx = replace(WIDE, ffn=FFNExperts(4), experts=peer_models.NAMES)
    configs = {"btx": btx, "bam": replace(btx, attention=AttentionExperts(4, 4))}
    context = PROMPT + n_new // 2
    n_bytes = {name: decoding_bytes(config, context) for name, config in configs.items()}
    works: dict[str, Work] = {}
    for name, config in configs.items():
        model = kept(cheap_model(config), 1)
        works[f"{name}, prefill"] = ours_generates(model, prompts(1), 1)
        works[f"{name}, all"] = ours_generates(model, prompts(1), 1 + n_new)
    times = interleaved(works, rounds)
    decode = {
        name: [(a - b) / n_new for a, b in zip(times[f"{name}, all"], times[f"{name}, prefill"], strict=True)]
        for name in configs
    }
    bytes_ratio = n_bytes["bam"] / n_bytes["btx"]
    values = [ratio / bytes_ratio for ratio in ratios(decode["bam"], decode["btx"])]
    speeds = {name: n_bytes[name] / statistics.median(decode[name]) for name in configs}
    latency = statistics.median(ratios(decode["bam"], decode["btx"]))
    mb = {name: (n_bytes[name] / 1e6, context * cache_bytes_per_token(configs[name]) / 1e6) for name in configs}
    each = [f"{name} {mb[name][0]:,.0f} MB, {mb[name][1]:.1f} of it cache" for name in configs]
    note = f"latency {latency:.2f}, bytes {bytes_ratio:.2f} a token ({'; '.join(each)})"
    note += "".join(f", {name} at {speed / 1e9:.1f} GB/s" for name, speed in speeds.items())
    details = {"bytes_per_token": n_bytes, "step_s": decode, "bytes_per_s": speeds, "context": context}
    return details, entry("decode_bam_over_btx", values, "ratio", note)


def cheap_model(config: ModelConfig) -> LM:
    """Weights of about the right size, the same for every run, in far less time than drawing hundreds of millions."""
    model = LM(config).cast(torch.bfloat16).eval()
    generator = torch.Generator().manual_seed(0)
    some = torch.randn(1_000_003, generator=generator).bfloat16()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1)
                continue
            repeated = some.repeat(-(-parameter.numel() // len(some)))[: parameter.numel()]
            parameter.copy_(repeated.view_as(parameter)).mul_(config.d_model**-0.5)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", choices=[*PEERS, "bytes"], action="append")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    rows: list[dict[str, Any]] = []
    table: list[dict[str, Any]] = []
    chosen = options.only or [*PEERS, "bytes"]
    for kind in PEERS:
        if kind in chosen:
            details, entries = over_transformers(kind, options.rounds)
            rows += details
            table += entries
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "prompt": PROMPT, "new": NEW, "rows": rows}
    if "bytes" in chosen:
        result["bam_over_btx"], found = bam_over_btx(options.rounds)
        table.append(found)
    for line in table:
        print(f"{line['row']:<22}{line['value']:>7.2f}  {line['low']:.2f} to {line['high']:.2f}   {line['note']}")
    write_result("decode", {**result, "table": table}, options.out)


if __name__ == "__main__":
    main()
