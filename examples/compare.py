"""Two runs that differ in one key: what each reached, and why they differ.

python examples/compare.py [STORE]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pandas as pd

import bam

RECIPE = Path(__file__).with_name("tiny.yaml")


def main(store: str) -> None:
    runs = {}
    for lr in (1.5e-3, 3e-3):
        pipeline = bam.load(RECIPE, set={"phases.mixture.lr": lr}, store=store, executor="local")
        made = pipeline.run(quiet=True)
        print(f"lr {lr:g}: made {sum(stage.status == 'done' for stage in made)} of {len(made)} stages")
        runs[lr] = pipeline

    reached = pd.DataFrame({f"at {lr:g}": pipeline.results().perplexity["average"] for lr, pipeline in runs.items()})
    print(reached.round(1).to_string())

    why = bam.open_store(store).compare(*(pipeline["train.bam"].ref for pipeline in runs.values()))
    print(why)
    assert str(why[0].changes[0]) == "phase.lr 0.0015 -> 0.003"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(f"{folder}/store")
