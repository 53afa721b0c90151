"""The fault table: `python -m tests.faults [WORD ...]` tries the faults whose name has one of the words, or all.

Each breaks a running pipeline for real and has the same command end it. Written to `.bench/faults.json` too.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.faults.catalogue import CLUSTER, LOCAL
from tests.faults.clusters import Machines
from tests.faults.lab import SMALLER, Lab, Outcome, new_lab, whole_run
from tests.faults.processes import end_all

RESULT = Path(".bench/faults.json")
ROW = "{:<38} {:<8} {:<32} {:>6} {:>8}  {}"


def main(words: list[str]) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows: list[dict[str, Any]] = []
    print(ROW.format("fault", "where", "committed work lost", "steps", "back, s", "identical"))
    with tempfile.TemporaryDirectory(prefix="bam-faults-") as name:
        folder = Path(name)
        machines = Machines(folder / "m")
        machines.folder.mkdir()
        chosen = [("local", fault) for fault in LOCAL] + [("cluster", fault) for fault in CLUSTER]
        chosen = [(where, fault) for where, fault in chosen if not words or any(w in fault.name for w in words)]
        try:
            finished = {}
            for n, (where, fault) in enumerate(chosen):
                if where not in finished:
                    finished[where] = whole_run(folder / where, SMALLER if where == "cluster" else None)
                lab = new_lab(folder / str(n), finished[where])
                breaks = fault.breaks if where == "local" else lambda lab, fault=fault: fault.breaks(lab, machines)
                rows.append({"fault": fault.name, "where": where, **_try(lab, breaks)})
                _show(rows[-1])
        finally:
            machines.stop()
    about = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": platform.platform()}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({**about, "cpus": os.cpu_count(), "faults": rows}, indent=2))
    return 1 if any(row.get("failed") for row in rows) else 0


def _try(lab: Lab, breaks: Callable[[Lab], None]) -> dict[str, Any]:
    try:
        breaks(lab)
        return _row(lab.outcome())
    except BaseException as error:  # a skip of pytest's is one
        if isinstance(error, KeyboardInterrupt):
            raise
        return {"failed": f"{type(error).__name__}: {error}"}
    finally:
        lab.close()
        end_all()


def _row(outcome: Outcome) -> dict[str, Any]:
    made_again = ", ".join(outcome.made_again) or "nothing"
    lost = f"only what it broke: {', '.join(outcome.broken)}" if outcome.broken else made_again
    failed = {"failed": "lost"} if outcome.made_again or not outcome.is_identical else {}
    return {
        "committed_lost": lost,
        "steps_lost": outcome.lost_steps,
        "back_s": round(outcome.back_s, 1),
        "identical": outcome.is_identical,
        **failed,
    }


def _show(row: dict[str, Any]) -> None:
    if "identical" not in row:
        print(f"{row['fault']:<38} {row['where']:<8} {row['failed'][:300]}", flush=True)
        return
    identical = "yes" if row["identical"] else "NO"
    figures = (row["committed_lost"], row["steps_lost"], f"{row['back_s']:.1f}", identical)
    print(ROW.format(row["fault"], row["where"], *figures), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
