"""`imported.<name>`: a checkpoint as a model folder of ours, by itself: what `bam import` makes, in no recipe.

Read and written one tensor at a time. `import.json` says of each tensor what it was made from. Where the checkpoint lay
is in the record, since bytes must not depend on it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

import torch

from bam_core.card import model_card
from bam_core.checkpoint import read_digests
from bam_core.errors import BamError
from bam_core.hf import read_checkpoint, write_imported
from bam_core.nn.costs import params_active, params_total
from bam_core.protocols import StageContext
from pipelines.stages.cards import carrying, subject_of
from pipelines.stages.importing import CARRIED, IMPORT_FILE

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run(context: StageContext) -> Mapping[str, Any]:
    """Raises InvalidInput with all that is wrong with the checkpoint, also values that are not finite."""
    said, runtime = context.config["import"], context.runtime
    if context.sources.digest(runtime["place"]) != said["digest"]:
        raise BamError(f"{runtime['imported_from']} changed since it was looked at; run the command again")
    folder = context.sources.folder(runtime["place"])
    imported = read_checkpoint(folder, ignore_code=runtime["ignore_code"])
    subject = subject_of(context, imported.config, imported=dict(said))
    dtype = DTYPES.get(context.config.get("dtype", ""))
    write_imported(imported, context.out, dtype, card=model_card(subject), provenance=carrying(subject.texts))
    digests = read_digests(context.out)
    tensors = {name: {"from": imported.origin(name), "sha256": digests[name]} for name in imported.tensors.names()}
    origins = {"import": dict(said), "tensors": tensors}
    (context.out / IMPORT_FILE).write_text(json.dumps(origins, indent=1) + "\n")
    for name in CARRIED:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, context.out / name)
    none = dict.fromkeys(("train_tokens", "train_flops", "lineage_tokens", "lineage_flops"), 0)
    config = imported.config
    return {"params_total": params_total(config), "params_active": params_active(config), **none}
