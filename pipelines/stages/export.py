"""`export.<variant>`: a model as a folder for transformers, `model/`: weights, config, tokenizer, code if needed.

`auto` takes a class of transformers where one equals the model. `model/export.json` says where every tensor went.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bam_core.hf.export import export_model
from bam_core.protocols import StageContext
from bam_core.train.loop import DTYPES
from pipelines.stages.inputs import EXPORTED, SEED_FILES


def run(context: StageContext) -> Mapping[str, Any]:
    torch.set_num_threads(context.resources.cpus)
    config, model = context.config, context.records["model"]
    found = export_model(
        context.inputs["model"],
        context.out / EXPORTED,
        to=config["to"],
        dtype=DTYPES[config["dtype"]] if "dtype" in config else None,
        beside=context.inputs.get(SEED_FILES),
        origin={"stage": model.stage, "key": model.key, "digest": model.digest},
    )
    return {"size_bytes": found.size_bytes, "tensors": found.n_theirs}
