"""`make bench`, `python -m tests.benchmarks.all`: every benchmark of docs/performance.md that needs no GPU, one by one.

Each is a command of its own that ends within two minutes on a quiet machine; `--only WORD` runs those with the word in
their name. One that fails is named at the end, and the others run all the same.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.result import OUT

PACKAGE = "tests.benchmarks"
BENCHMARKS = ("", "peers", "decode", "growth", "mixing", "tokenise", "feeding", "saving", "pipeline", "planning")
"""Modules of the package; the first is the package itself, the training steps."""


def module(name: str) -> str:
    return f"{PACKAGE}.{name}" if name else PACKAGE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    failed, started = [], time.monotonic()
    for name in (module(name) for name in BENCHMARKS if given.only in module(name)):
        print(f"\n{name}", flush=True)
        began = time.monotonic()
        if subprocess.run([sys.executable, "-m", name, "--out", str(given.out)], check=False).returncode:
            failed.append(name)
        print(f"{time.monotonic() - began:.0f} s", flush=True)
    print(f"\n{time.monotonic() - started:.0f} s in total; results in {given.out}/")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
