"""`bam doctor`: whether a run would find what it needs, and what this machine does in a second."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bam_core.errors import UsageError
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command
from pipelines.cli.text import duration, size, styled, table

if TYPE_CHECKING:
    from bam_core.planner.calibration import Calibration, Prices


@click.command(
    cls=Command,
    examples=(
        "bam doctor",
        "bam doctor --store s3://bucket/bam --tracking-uri http://127.0.0.1:5000",
        "bam doctor --address http://127.0.0.1:8265",
        "bam doctor --calibrate --out here.json",
    ),
)
@click.option("--calibrate", is_flag=True, help="Measure this machine, for `bam plan --on`; about two minutes.")
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("calibration.json"),
    show_default=True,
    help="Where --calibrate writes.",
)
@with_session
def doctor(session: Session, calibrate: bool, out: Path) -> int:
    """Is everything there that a run needs? What is wrong is said with its remedy, and the exit status is 1.

    Packages and their versions, GPU, memory for Ray, store, disk, keys, MLflow, plug-ins; with --address the cluster.
    With --calibrate: how long training steps, forward passes, text and disk take here, as a file for `bam plan --on`.
    Measure with nothing else running."""
    if calibrate:
        return _calibrate(session, out)
    from pipelines import wiring

    checks = wiring.doctor(session.settings())

    def words() -> str:
        rows = []
        for check in checks:
            rows.append([styled("done" if check.ok else "failed"), check.name, check.detail])
            rows += [["", "", check.remedy]] if check.remedy and not check.ok else []
        return table(["state", "check", "found"], rows)

    session.answer([asdict(check) for check in checks], words)
    return 0 if all(check.ok for check in checks) else 1


def _calibrate(session: Session, out: Path) -> int:
    from pipelines.wiring.calibrating import calibrate

    if not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out}: its folder is not there")
    found = calibrate(session.settings(), lambda words: click.echo(f"measuring: {words}", err=True))
    try:
        out.write_text(json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written: {error.strerror or error}") from error
    session.answer({"file": str(out), **found.to_json()}, lambda: calibration_text(found, out))
    return 0


def calibration_text(found: Calibration, out: Path) -> str:
    """What was measured, in figures that people know; then where it is."""
    rows = [
        ["device", f"{found.device}, {found.cpus} CPUs"],
        *([f"products on {n} thread(s)", _rate(prices.of["products"])] for n, prices in found.steps.items()),
        *([f"steps are predicted on {n} thread(s)", _within(prices)] for n, prices in found.steps.items()),
        ["memory is predicted", _within(found.peak)],
        *([f"a training process, idle, executor {name}", size(int(n))] for name, n in found.idle_bytes.items()),
        *([f"text for {kind}", f"{_per_second(s)} MB/s"] for kind, s in found.text_s_per_byte.items()),
        ["disk", f"{_per_second(found.write_s_per_byte)} MB/s"],
        ["start of a process", duration(found.start_s)],
        ["beside others, a training takes", f"{found.crowding:.2f} times as long"],
    ]
    return table(["measured", ""], rows) + f"\n\n{out}: the `calibration` of such nodes, for `bam plan --on`"


def _within(prices: Prices) -> str:
    return f"within {prices.worst - 1:.0%}, each from the others"


def _rate(seconds_per_flop: float) -> str:
    return f"{1e-9 / seconds_per_flop:,.0f} GFLOP/s" if seconds_per_flop else "hidden behind the rest"


def _per_second(seconds_per_byte: float) -> str:
    return f"{1e-6 / seconds_per_byte:,.1f}" if seconds_per_byte else "more than can be told,"


COMMANDS = (doctor,)
