"""How much of each layer of the code the tests ran, from what `python -m tests.run --coverage` has measured.

Lines that other processes ran (workers of a group, forked servers, Ray's) are not seen, nor is code sent to a browser.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from coverage import Coverage

from tests.run import DATA, ROOT

PACKAGES = ("bam", "bam_core", "infra", "pipelines")


def layer_of(path: Path) -> str:
    """A package and its folder: `bam_core/nn`; files that are in none belong to the package."""
    package, *folders = path.relative_to(ROOT).parent.parts
    return "/".join([package, *folders[:1]])


def counts(cov: Coverage) -> Iterator[tuple[str, int, int]]:
    """(layer, statements, statements that no test ran) of every file, whether it was imported or not."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            _, statements, _, missing, _ = cov.analysis2(str(path))
            yield layer_of(path), len(statements), len(missing)


def table(rows: Iterator[tuple[str, int, int]]) -> list[str]:
    layers: dict[str, tuple[int, int]] = {}
    for layer, n_statements, n_missing in rows:
        for name in (layer, "all"):
            known = layers.get(name, (0, 0))
            layers[name] = (known[0] + n_statements, known[1] + n_missing)
    layers["all"] = layers.pop("all")
    lines = [f"{'layer':<24}statements   not run   covered"]
    for name, (n_statements, n_missing) in layers.items():
        if n_statements:
            covered = 100 * (n_statements - n_missing) / n_statements
            lines.append(f"{name:<24}{n_statements:>10}{n_missing:>10}{covered:>9.1f}%")
    return lines


def main() -> int:
    if not DATA.exists():
        print("nothing is measured: run `make coverage`", file=sys.stderr)
        return 2
    cov = Coverage(data_file=str(DATA))
    cov.load()
    print("\n" + "\n".join(table(counts(cov))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
