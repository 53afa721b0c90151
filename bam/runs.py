"""A run that has ended, and a job of a cluster."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from bam.words import html_lines, html_table, in_words
from bam_core.errors import StageFailed
from bam_core.graph.key import key12
from pipelines.cli.ending import failures, result_text

if TYPE_CHECKING:
    import pandas as pd

    from pipelines.cli.app import Session
    from pipelines.runner import Display, RunResult, StageResult, StageState
    from pipelines.wiring import Settings


class Run(Sequence["StageResult"]):
    """What a run has done: its stages in order. status: `done`. report: where `report.html` lies, if it was made."""

    def __init__(self, result: RunResult, options: Session) -> None:
        self._result, self._session = result, options

    @classmethod
    def of(cls, result: RunResult, options: Session) -> Run:
        """Raises StageFailed or KeyboardInterrupt for a run that has not ended well."""
        if result.status == "failed":
            raise StageFailed("\n".join([*failures(result), "what is done is kept, and the same call continues"]))
        if result.status == "interrupted":
            raise KeyboardInterrupt("what is done is kept, and the same call continues")
        return cls(result, options)

    @property
    def name(self) -> str:
        return self._result.run

    @property
    def status(self) -> str:
        return self._result.status

    @property
    def seconds(self) -> float:
        return self._result.seconds

    @property
    def report(self) -> str | None:
        return self._result.report

    def __len__(self) -> int:
        return len(self._result.stages)

    def __getitem__(self, index: Any) -> Any:
        return self._result.stages[index]

    def frame(self) -> pd.DataFrame:
        """A row for each stage."""
        import pandas as pd

        return pd.DataFrame([asdict(stage) for stage in self])

    def __repr__(self) -> str:
        return click.unstyle(result_text(self._session, self._result)).strip()

    def _repr_html_(self) -> str:
        rows = [[stage.stage, key12(stage.key), stage.status, f"{stage.seconds:.1f} s"] for stage in self]
        words = [f"{self.status} in {self.seconds:.1f} s", *([f"report: {self.report}"] if self.report else [])]
        return html_table(["stage", "key", "status", "took"], rows, right=[3]) + html_lines(words)


@contextmanager
def shown(quiet: bool) -> Iterator[Display]:
    """What is told of a run as it goes: a live table in a terminal, lines in a notebook."""
    warnings.filterwarnings("ignore", message="IProgress not found")  # of tqdm, which others import: we show no bar
    if quiet:
        yield _Nothing()
        return
    from pipelines.cli.display import open_display

    display = open_display(sys.stdout)
    try:
        yield display
    finally:
        display.close()


class _Nothing:
    def update(self, states: list[StageState]) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class Job:
    """A run on a cluster, submitted; it goes on whatever happens here."""

    def __init__(self, id: str, settings: Settings) -> None:
        self.id = id
        self._settings = settings

    @property
    def status(self) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED, as it is now."""
        return str(self._jobs().job(self.id).status)

    def logs(self) -> str:
        """What it has printed so far."""
        return str(self._jobs().logs(self.id))

    def follow(self) -> None:
        """Show its log to its end. Raises StageFailed unless it ends well."""
        with in_words():
            job = self._jobs().follow(self.id, _write)
            if job.status != "SUCCEEDED":
                raise StageFailed(f"{self.id}: {job.status}; what is done is kept, and the same submission continues")

    def stop(self) -> None:
        """End it in order."""
        with in_words():
            self._jobs().stop(self.id)

    def _jobs(self) -> Any:
        with in_words():
            from pipelines.wiring import open_jobs

            return open_jobs(self._settings)

    def __repr__(self) -> str:
        return f"<bam.Job {self.id}>"


def _write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()
