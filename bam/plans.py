"""What a run would do, as a table that notebooks show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from bam.words import html_lines, html_table
from bam_core.errors import UsageError, nearest
from bam_core.graph.key import key12
from pipelines.cli.tables import plan_text

if TYPE_CHECKING:
    import pandas as pd

    from bam_core.graph.plan import Decision
    from bam_core.plugins import Plugin
    from pipelines import wiring


class Plan(Sequence["Decision"]):
    """The stages in order, each with its key, action (`run`, `reuse`, `wait`, `blocked`) and reason.

    `plan["train.bam"]` is one of them, `plan.frame()` all as pandas. made: as `pipelines.wiring.make_plan` gave it.
    """

    def __init__(self, made: wiring.Plan) -> None:
        self.made = made

    def __len__(self) -> int:
        return len(self.made.decisions)

    def __iter__(self) -> Iterator[Decision]:
        return iter(self.made.decisions)

    def __contains__(self, stage: object) -> bool:
        return any(stage in (decision, decision.stage) for decision in self)

    def __getitem__(self, stage: Any) -> Any:
        if not isinstance(stage, str):
            return self.made.decisions[stage]
        for decision in self.made.decisions:
            if decision.stage == stage:
                return decision
        raise UsageError(f"no stage named {stage!r}: {nearest(stage, self.actions)}")

    @property
    def actions(self) -> dict[str, str]:
        """Stage -> what would happen."""
        return {decision.stage: decision.action for decision in self.made.decisions}

    @property
    def keys(self) -> Mapping[str, str]:
        """Stage -> its key."""
        return self.made.keys

    @property
    def warnings(self) -> list[str]:
        return list(self.made.warnings)

    @property
    def plugins(self) -> Sequence[Plugin]:
        """Those that the recipe uses."""
        return self.made.plugins

    def frame(self) -> pd.DataFrame:
        """A row for each stage."""
        import pandas as pd

        columns = ("stage", "key", "action", "reason", "cause")
        return pd.DataFrame([{name: getattr(decision, name) for name in columns} for decision in self], columns=columns)

    def models(self) -> pd.DataFrame:
        """A row for each model: parameters, FLOPs per token, tokens and FLOPs of its training, memory."""
        import pandas as pd

        plain = {
            name: {what: value for what, value in figures.items() if not isinstance(value, Mapping)}
            for name, figures in self.made.models.items()
        }
        return pd.DataFrame.from_dict(plain, orient="index").rename_axis("model")

    def __repr__(self) -> str:
        return click.unstyle(plan_text(self.made))

    def _repr_html_(self) -> str:
        rows = [[d.stage, key12(d.key), d.action, d.reason] for d in self]
        counts = list(self.actions.values())
        words = ", ".join(f"{counts.count(action)} {action}" for action in dict.fromkeys(counts))
        plugins = [f"plug-in: {plugin}" for plugin in self.plugins]
        warnings = [f"warning: {warning}" for warning in self.warnings]
        table = html_table(["stage", "key", "action", "reason"], rows)
        return table + html_lines([f"{len(rows)} stages: {words}", *plugins, *warnings])
