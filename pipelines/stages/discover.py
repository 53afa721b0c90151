"""`discover.<name>`: text without labels divided into clusters, each of which can be a domain."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bam_core.data.discover import CLUSTERS_FILE, discover
from bam_core.errors import InvalidInput
from bam_core.protocols import StageContext
from pipelines.stages.data import require_planned_text


def run(context: StageContext) -> Mapping[str, Any]:
    config, source = context.config, context.runtime["source"]
    [(name, spec)] = config["domains"].items()
    texts = (document.text for document in context.sources.read(source))
    options = {name: config[name] for name in ("features", "dims", "seed", "balance")}
    try:
        found = discover(texts, config["n"], **options)
    except InvalidInput as error:  # of the source, or of what is made of it
        here = f"discover.{name}{'.source' if error.where == 'source' else ''}"
        raise InvalidInput("recipe", [problem.under(here) for problem in error.problems]) from error
    require_planned_text(context, source, spec["source"]["digest"])
    found.write(context.out / CLUSTERS_FILE)
    (context.out / "clusters.json").write_text(json.dumps(found.report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return {figure: found.report[figure] for figure in ("documents", "duplicates_dropped", "silhouette")}
