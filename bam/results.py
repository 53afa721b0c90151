"""What an evaluation and a report have found: tables as pandas frames, figures as drawings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bam.drawings import Figure, Figures
from bam.words import Named, html_lines, in_words
from bam_core.errors import UsageError, nearest

if TYPE_CHECKING:
    import pandas as pd

MORE = {
    "documents": ("evaluate", "documents.parquet"),
    "task_items": ("evaluate", "tasks.parquet"),
    "routing_tokens": ("routing", "routing.parquet"),
}
"""Beside the report's tables: name -> the stage and the file."""


class Results(Named["pd.DataFrame"]):
    """`results["costs"]` is a frame, `results.figures["training-branches"]` a drawing; both are the report's own.

    Beside its tables: `documents` (the loss of each document under each model), `task_items` and `routing_tokens`,
    where there are some. folders: stage -> where its files are.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = folders

    def __getitem__(self, name: str) -> pd.DataFrame:
        """Raises UsageError for a table that is not there."""
        import pandas as pd

        with in_words():
            if name not in self._files:
                raise UsageError(f"no table {name!r}: {nearest(name, self._files)}")
        path = self._files[name]
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def perplexity(self) -> pd.DataFrame:
        """Models by domains, and their average; `results["perplexity"]` has all of the report's table."""
        frame = self["perplexity"].set_index("model")
        domains = {name: name.partition(".")[2] for name in frame if name.startswith("perplexity.")}
        return frame[[*domains, "average_perplexity"]].rename(columns=domains | {"average_perplexity": "average"})

    @cached_property
    def figures(self) -> Figures:
        """By name, as in the report's folder."""
        files = sorted((self._folders["report"] / "figures").glob("*.svg"))
        return Figures({file.stem: Figure(file.stem, file.read_text(encoding="utf-8")) for file in files})

    @property
    def report(self) -> Path:
        """The page."""
        return self._folders["report"] / "report.html"

    @cached_property
    def _files(self) -> dict[str, Path]:
        found = {file.stem: file for file in sorted((self._folders["report"] / "tables").glob("*.csv"))}
        others = {name: self._folders[stage] / file for name, (stage, file) in MORE.items() if stage in self._folders}
        return found | {name: file for name, file in others.items() if name not in found and file.exists()}

    def __repr__(self) -> str:
        return f"<bam.Results tables: {', '.join(self)}; figures: {', '.join(self.figures)}>"

    def _repr_html_(self) -> str:
        frame = self.perplexity.to_html(float_format="{:.2f}".format) if "perplexity" in self else ""
        return frame + html_lines([f"tables: {', '.join(self)}", f"figures: {', '.join(self.figures)}"])
