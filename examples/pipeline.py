"""A whole pipeline from Python: text to experts to mixtures to a report, and what it found.

python examples/pipeline.py [STORE]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import bam

RECIPE = Path(__file__).with_name("tiny.yaml")


def main(store: str) -> None:
    pipeline = bam.load(RECIPE, store=store, executor="local")
    print(pipeline.plan())  # what would run, and why

    run = pipeline.run(quiet=True)
    print(run)

    results = pipeline.results()  # the report's tables, as pandas frames
    print(results.perplexity.round(1).to_string())
    print("tables:", ", ".join(results))
    print("drawings:", ", ".join(results.figures))

    mixture = pipeline["train.bam"]  # or bam.open_store(store)["train.bam"]
    print(mixture.training()[["step", "loss", "lr"]].tail(3).to_string(index=False))
    print(repr(mixture.generate("The software", max_new_tokens=16, temperature=0.8)))
    print(f"{len(mixture.lineage())} artifacts and texts are behind {mixture.ref}")

    again = pipeline.run(quiet=True)  # nothing is left to do
    assert {stage.status for stage in again} == {"reused"}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(f"{folder}/store")
