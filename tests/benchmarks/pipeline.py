"""`python -m tests.benchmarks.pipeline`: how long `bam run` takes where everything is done, and what a whole run adds.

The store is made here: finished artifacts of the recipe's own stages, with empty files for outputs, whose sizes are
looked at and whose bytes are not. Timed is the command, from its start to its end, as people use it: it reads all texts
for their digests, and runs nothing. `imports` are its slowest modules, by `python -X importtime`.

What a whole run takes beside its stages' compute is measured by `python -m tests.benchmarks.cluster overhead`, in
twenty minutes; its result, if there is one in `--out`, becomes a row of this one's table.
The result is `.bench/pipeline.json`. Nothing here is a test: no figure is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines import bam
from pipelines.recipe import load_recipe
from pipelines.wiring.planning import text_digests
from tests.benchmarks.result import OUT, write_result
from tests.benchmarks.store import fill
from tests.benchmarks.timing import entry

MAIN = "from pipelines.cli import main; main()"
OVERHEAD = "cluster-overhead.json"


def reuse(recipe: str, store: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`bam run` over a store where everything is done."""
    words = [sys.executable, *options, "-c", MAIN, "run", recipe, "--store", str(store), "--json"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("BAM_", "RAY_", "MLFLOW_"))}
    return subprocess.run(words, check=True, capture_output=True, text=True, env=env)


def measure(recipe: str, store: Path, rounds: int) -> dict[str, Any]:
    loaded = load_recipe(recipe)
    stages = list(bam.build(loaded, text_digests(loaded)))
    fill(store, loaded, len(stages), first_seed=loaded.seed)
    seconds = []
    for i in range(-1, rounds):  # the first fills the file cache
        started = time.perf_counter()
        said = json.loads(reuse(recipe, store).stdout)
        if i >= 0:
            seconds.append(time.perf_counter() - started)
    states = {stage["status"] for stage in said["stages"]}
    assert states == {"reused"}, f"stages ran: {states}"
    return {"stages": len(stages), "seconds": seconds, "imports": _imports(reuse(recipe, store, "-X", "importtime"))}


def _imports(run: subprocess.CompletedProcess[str]) -> dict[str, float]:
    """Module -> its own milliseconds, of the ten slowest."""
    own: dict[str, float] = {}
    for line in run.stderr.splitlines():
        if line.startswith("import time:") and "[us]" not in line:
            micros, _, name = line.removeprefix("import time:").split("|")
            own[name.strip()] = int(micros) / 1000
    return dict(sorted(own.items(), key=lambda item: -item[1])[:10])


def of_whole_run(found: Mapping[str, Any]) -> dict[str, Any]:
    note = f"{found['ray_wall_s']:.0f} s; compute of the stages {sum(found['compute_s'].values()):.0f} s"
    return entry("pipeline_overhead", [found["overhead"]], "ratio", f"{note}; {found['device']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="quickstart")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bam-bench-") as folder:
        figures = measure(options.recipe, Path(folder) / "store", options.rounds)
    table = [entry("reused_s", figures["seconds"], "s", f"{figures['stages']} stages of {options.recipe}")]
    print(f"everything reused: {statistics.median(figures['seconds']):.2f} s")
    for name, milliseconds in figures["imports"].items():
        print(f"  import {name:<40}{milliseconds:>8.0f} ms")
    if (options.out / OVERHEAD).exists():
        table.append(of_whole_run(json.loads((options.out / OVERHEAD).read_text())))
        print(f"wall time over the stages' compute: {table[-1]['value']:.2f}")
    write_result("pipeline", {**figures, "table": table}, options.out)


if __name__ == "__main__":
    main()
