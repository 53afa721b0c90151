"""`edit.<new>`: a mixture with one expert more, or one fewer, and what that did to it (`bam expert add | remove`).

`edit.json` says of each tensor what it was made from, with digests, and the perplexity before and after.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bam_core.card import model_card
from bam_core.checkpoint import CARD, load_model, open_tensors, read_config, write_model
from bam_core.data.shards import ShardedRows
from bam_core.data.tokenize import Tokenizer
from bam_core.evaluate.documents import Chosen, Documents, choose
from bam_core.evaluate.strided import score_documents
from bam_core.nn.costs import params_active, params_total
from bam_core.nn.lm import LM
from bam_core.protocols import StageContext
from bam_core.upcycle.edit import Edit, adding, edited, removing
from pipelines.stages.cards import carrying, subject_of

ROWS_COMPARED = 4
"""Rows of each domain on which the logits before and after are compared."""


def run(context: StageContext) -> Mapping[str, Any]:
    torch.set_num_threads(context.resources.cpus)
    config, base = context.config, context.inputs["base"]
    edit = _edit(context)
    expert = open_tensors(context.inputs["expert"]) if "expert" in context.inputs else None
    tensors: dict[str, Any] = {}
    made = edited(
        edit,
        open_tensors(base),
        expert,
        router_row=config.get("router_row", "zeros"),
        factors=config.get("factors"),
        provenance=tensors,
    )
    write_model(
        context.out,
        edit.target,
        made,
        tokenizer=base / "tokenizer.json",
        card=None,  # it tells what the edit did
        provenance={"stage": context.stage, "key": context.key, **carrying(subject_of(context, edit.target).texts)},
        made=tensors,
    )
    rows = _rows(context)
    texts = _chosen(rows, base, config["tokens"])
    before, after = load_model(base).eval(), load_model(context.out).eval()
    report = {
        "operation": config["operation"],
        "name": config["name"],
        "base": _ref(context, "base"),
        "expert": _ref(context, "expert"),
        "experts": {"before": list(before.config.experts), "after": list(after.config.experts)},
        **({"router_row": config["router_row"]} if "router_row" in config else {}),
        "perplexity": {
            "before": _perplexities(before, texts),
            "after": _perplexities(after, texts),
        },
        "logit_difference": _logit_difference(before, after, rows),
        "tensors": tensors,
    }
    (context.out / "edit.json").write_text(json.dumps(report, indent=1) + "\n")
    card = model_card(subject_of(context, edit.target, edit=report))
    (context.out / CARD).write_text(card, encoding="utf-8")
    return _metrics(context, edit, report)


def _edit(context: StageContext) -> Edit:
    mixture = read_config(context.inputs["base"])
    if context.config["operation"] == "add":
        return adding(mixture, read_config(context.inputs["expert"]), context.config["name"])
    return removing(mixture, context.config["name"])


def _rows(context: StageContext) -> dict[str, ShardedRows]:
    roles = [role for role in context.inputs if role.startswith("data.")]
    return {role.removeprefix("data."): ShardedRows(context.inputs[role] / "valid") for role in roles}


def _chosen(rows: Mapping[str, ShardedRows], base: Path, max_tokens: int) -> dict[str, Chosen]:
    """Domain -> the documents that a recipe's `evaluate` would score with as many tokens."""
    if not rows:
        return {}
    token_bytes = Tokenizer.load(base / "tokenizer.json").token_bytes
    return {domain: choose(Documents.of(found, token_bytes), max_tokens) for domain, found in rows.items()}


def _perplexities(model: LM, texts: Mapping[str, Chosen]) -> dict[str, float]:
    """Domain -> perplexity of held-out documents, with the stride that is a recipe's default."""
    stride = max(1, model.config.max_seq_len // 2)
    return {domain: score_documents(model, chosen, stride).total.perplexity for domain, chosen in texts.items()}


@torch.inference_mode()
def _logit_difference(before: LM, after: LM, rows: Mapping[str, ShardedRows]) -> float:
    """The largest change of any logit, on a few rows of held-out text, or on any tokens where there is none."""
    config = before.config
    any_T = torch.arange(min(config.max_seq_len, config.vocab_size))
    texts = [found[np.arange(i, i + 1)] for found in rows.values() for i in range(min(ROWS_COMPARED, len(found)))]
    worst = 0.0
    for tokens_BT in [torch.from_numpy(text)[:, :-1] for text in texts] or [any_T[None]]:
        outputs = [(model, model(tokens_BT)) for model in (before, after)]
        was, now = (model.logits(output.hidden_BTD, output.mix_BTE) for model, output in outputs)
        worst = max(worst, (was - now).abs().max().item())
    return worst


def _ref(context: StageContext, role: str) -> dict[str, str] | None:
    record = context.records.get(role)
    return None if record is None else {"stage": record.stage, "key": record.key}


def _metrics(context: StageContext, edit: Edit, report: Mapping[str, Any]) -> dict[str, Any]:
    """lineage_*: all training behind it; of an expert that was added, its own stage's, as both had one seed."""
    base = context.records["base"].metrics
    added = context.records["expert"].metrics if "expert" in context.records else {}
    figures: dict[str, Any] = {
        "params_total": params_total(edit.target),
        "params_active": params_active(edit.target),
        "logit_difference": report["logit_difference"],
    }
    for what in ("tokens", "flops"):
        figures[f"lineage_{what}"] = base.get(f"lineage_{what}", 0) + added.get(f"train_{what}", 0)
    for when, found in report["perplexity"].items():
        figures |= {f"perplexity_{when}.{domain}": value for domain, value in found.items()}
    return figures
