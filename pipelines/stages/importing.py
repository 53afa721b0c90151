"""`seed`, `expert.<domain>` or `import.<domain>` of what a recipe imports: a checkpoint as a model folder of ours.

Read and written one tensor at a time. An adapter is merged into its base on the way, and rows of a vocabulary are put
in order. `import.json` says of each tensor what it was made from, with the digest of the checkpoint; the card says it
for people. Where the checkpoint lay is in the record, since bytes must not depend on it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bam_core.card import model_card
from bam_core.checkpoint import CARD, read_digests
from bam_core.config import ModelConfig
from bam_core.errors import BamError
from bam_core.hf import write_imported
from bam_core.nn.costs import params_active, params_total
from bam_core.protocols import StageContext
from bam_core.upcycle.opening import TOKENIZER, Opened, open_checkpoint
from bam_core.upcycle.vocabulary import Common, Vocabulary, common_vocabulary
from bam_core.upcycle.vocabulary_rows import PER_TOKEN, CommonRows
from pipelines.stages.cards import carrying, subject_of

IMPORT_FILE = "import.json"
CARRIED = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")
"""Files beside the tokenizer that say how it is used; an export takes them along."""


def run(context: StageContext) -> Mapping[str, Any]:
    config, own = context.config, context.runtime["of"]
    folders = _folders(context)
    opened = _open(folders, context.runtime["base"])
    common = _common(config, opened)
    target = ModelConfig.from_json(config["model"])
    tensors = opened[own].imported.tensors
    if common is not None:
        tensors = CommonRows(own, common.rows[own], {name: each.imported.tensors for name, each in opened.items()})
    tokenizer = context.inputs["tokenizer"] / TOKENIZER
    imported = replace(opened[own].imported, tensors=tensors, config=target, tokenizer=tokenizer)
    subject = subject_of(context, target, imported=dict(config["import"]))
    write_imported(imported, context.out, card=None, provenance=carrying(subject.texts))
    (context.out / CARD).write_text(model_card(subject), encoding="utf-8")
    return finish(context.out, folders[own], target, _origins(context, replace(opened[own], imported=imported), common))


def finish(out: Path, folder: Path, model: ModelConfig, origins: Mapping[str, Any]) -> dict[str, Any]:
    """Leave `import.json` and the checkpoint's CARRIED files beside an imported model; the stage's metrics."""
    (out / IMPORT_FILE).write_text(json.dumps(origins, indent=1) + "\n")
    for name in CARRIED:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    none = dict.fromkeys(("train_tokens", "train_flops", "lineage_tokens", "lineage_flops"), 0)
    return {"params_total": params_total(model), "params_active": params_active(model), **none}


def _folders(context: StageContext) -> dict[str, Path]:
    """Name -> folder of each checkpoint that the stage reads. Raises BamError for one that changed since the plan."""
    config, runtime = context.config, context.runtime
    planned = dict(config.get("vocabulary", {}).get("models", ())) | {runtime["of"]: config["import"]["digest"]}
    planned |= {runtime["base"]: config["base"]} if "base" in config else {}
    for name, place in runtime["places"].items():
        if context.sources.digest(place) != planned[name]:
            raise BamError(f"the checkpoint {place.get('path') or place.get('id')} changed since the plan; run again")
    return {name: context.sources.folder(place) for name, place in runtime["places"].items()}


def _open(folders: Mapping[str, Path], base: str) -> dict[str, Opened]:
    """Every checkpoint; base: the one that adapters among them are merged into."""
    found = {base: open_checkpoint(folders[base])} if base in folders else {}
    return found | {name: open_checkpoint(folder, found.get(base)) for name, folder in folders.items() if name != base}


def _common(config: Mapping[str, Any], opened: Mapping[str, Opened]) -> Common | None:
    """The vocabulary that the recipe's models get, if it changes this one's rows."""
    if "vocabulary" not in config:
        return None
    known: dict[str, tuple[Vocabulary, int]] = {}
    for name, _ in config["vocabulary"]["models"]:
        vocabulary, model = opened[name].vocabulary, opened[name].imported.config
        assert vocabulary is not None, f"{name} had a tokenizer when this was planned"
        known[name] = (vocabulary, model.vocab_size)
    return common_vocabulary(known, config["vocabulary"]["rule"])


def _origins(context: StageContext, opened: Opened, common: Common | None) -> dict[str, Any]:
    """Of each tensor: its file and tensors in the checkpoint, of an adapter's in its base; what was done to them."""
    digests, adapter, imported = read_digests(context.out), opened.adapter, opened.imported
    tensors = {
        name: {"from": imported.origin(name)}
        | ({"then": steps} if (steps := list(_steps(name, opened, common))) else {})
        | {"sha256": digests[name]}
        for name in imported.tensors.names()
    }
    found = {"import": dict(context.config["import"]), "tensors": tensors}
    if adapter is not None:
        found["adapter"] = {"rank": adapter.rank, "modules": len(adapter.deltas), "replaced": sorted(adapter.full)}
    if common is not None:
        found["vocabulary"] = {"rule": common.rule, "size": common.size, "added": len(common.added)}
    return found


def _steps(name: str, opened: Opened, common: Common | None) -> Iterator[str]:
    adapter = opened.adapter
    if adapter is not None:
        changed = {f"{module}.{part}" for module, d in adapter.deltas.items() for part in d.parts} | adapter.full.keys()
        theirs = [tensor for link in opened.imported.links if name in link.ours for tensor in link.theirs]
        if not changed.isdisjoint(theirs):
            yield "adapter merged"
    if common is not None and name in PER_TOKEN:
        yield "rows in the order of the common vocabulary"
