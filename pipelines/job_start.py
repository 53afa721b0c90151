"""The first program of a submitted job: says in words what does not fit where it runs, then hands over to `bam`.

It goes into the package as `start.py`, beside the code. Python 3.6 must be able to read it, so it has old syntax, no
imports of ours, and nothing but the standard library before the check. Types that it does not know are in quotes.
"""

import json
import sys
from pathlib import Path

NEEDED = (
    "ray",
    "torch",
    "numpy",
    "safetensors",
    "tokenizers",
    "pyarrow",
    "fsspec",
    "mlflow",
    "pydantic",
    "yaml",
    "click",
)


def problem(wanted: "dict[str, str]") -> "str | None":
    """Why this Python cannot run what was submitted, or None. wanted: the submitter's versions."""
    program, here = sys.executable, ".".join(map(str, sys.version_info[:2]))
    if here != wanted["python"]:
        there = wanted["python"]
        return f"the job's Python is {here} ({program}), the submitter's is {there}: use one, or give --python PATH"
    from importlib.metadata import version
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        return f"the job's Python ({program}) has no {names}: install bam's packages there, or give --python PATH"
    if version("ray") != wanted["ray"]:
        here, there = version("ray"), wanted["ray"]
        return f"the job's Python ({program}) has Ray {here}, the submitter's has {there}: install the same on both"
    return None


def start() -> int:
    with (Path(__file__).parent / "submitted.json").open() as file:
        words = problem(json.load(file))
    if words:
        sys.stderr.write(f"bam: {words}\n")
        return 2
    from pipelines.cli import main

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(start())
