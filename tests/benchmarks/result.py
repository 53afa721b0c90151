"""A benchmark's result: figures under the conditions in which they were measured, in `.bench/<name>.json`.

The head is the same for all: device, CPUs, load, date, commit, versions, command. Needs nothing beside Python, so that
a benchmark of `bam_core` alone runs where nothing else is installed.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from infra.devices import processor

OUT = Path(".bench")
PACKAGES = ("bam", "torch", "transformers", "numpy", "ray", "mlflow", "playwright")


def write_result(name: str, figures: Mapping[str, Any], out: Path = OUT, device: str | None = None) -> Path:
    """Write `<out>/<name>.json` and say so. device: what was measured, unless it is the processor."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    path.write_text(json.dumps({**conditions(device), **figures}, indent=1) + "\n")
    print(f"written to {path}")
    return path


def conditions(device: str | None = None) -> dict[str, Any]:
    return {
        "device": device or processor(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **_versions()},
        "command": shlex.join(["python", "-m", *_module(), *sys.argv[1:]]),
    }


def _module() -> list[str]:
    """What `python -m` was given; the script's name where it was none."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).name]


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit, with `+` if tracked files differ from it; None without git."""
    try:
        words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty=+"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
