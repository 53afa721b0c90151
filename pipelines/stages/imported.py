"""`imported.<name>`: a checkpoint as a model folder of ours, by itself: what `bam import` makes, in no recipe.

Read and written one tensor at a time. `import.json` says of each tensor what it was made from. Where the checkpoint lay
is in the record, since bytes must not depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bam_core.card import model_card
from bam_core.checkpoint import read_digests
from bam_core.errors import BamError
from bam_core.hf import read_checkpoint, write_imported
from bam_core.protocols import StageContext
from bam_core.train.loop import DTYPES
from pipelines.stages.cards import carrying, subject_of
from pipelines.stages.importing import finish


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
    return finish(context.out, folder, imported.config, {"import": dict(said), "tensors": tensors})
