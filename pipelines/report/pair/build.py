"""From what two runs left to their page. Equal inputs give equal bytes."""

from __future__ import annotations

import shlex

from markupsafe import Markup

from pipelines.report.curves import WIDTH, Curve, curve_panel, points_of
from pipelines.report.formats import change, clean
from pipelines.report.pages import render
from pipelines.report.pair.chances import Chances
from pipelines.report.pair.runs import Pair
from pipelines.report.pair.tables import average_table, domains_table, recipe_table, runs_table, stages_table
from pipelines.report.pair.words import caveats, headline, names, tiles
from pipelines.report.svg import Panel, shortened

LOOKS = {"A": (1, False), "B": (2, True)}
"""Run -> its colour and whether its line is dashed."""


def pair_page(pair: Pair, chance: Chances) -> str:
    """One HTML file that needs nothing beside it."""
    return render(
        "pair.html.j2",
        title=clean(f"{pair.a.name} and {pair.b.name}"),
        a=clean(pair.a.name),
        b=clean(pair.b.name),
        headline=headline(pair),
        tiles=tiles(pair),
        caveats=caveats(pair, chance),
        runs=runs_table(pair),
        recipe=recipe_table(pair),
        averages=average_table(pair, chance),
        domains=domains_table(pair),
        forest=chance.panel,
        curves=training_curves(pair),
        same_trainings=_same_trainings(pair),
        stages=stages_table(pair),
        commands=_commands(pair),
    )


def training_curves(pair: Pair) -> list[tuple[Panel, str]]:
    """A panel for each training of both, and where its two curves end."""
    drawn = []
    for name in pair.trained:
        made = [
            Curve(side, *LOOKS[side], points_of(run.training[name], "loss", 0.0))
            for side, run in (("A", pair.a), ("B", pair.b))
        ]
        curves = [curve for curve in made if curve.runs]
        panel = curve_panel(shortened(f"{name}: training loss", WIDTH), curves)
        if panel is not None:
            drawn.append((panel, _ends(curves)))
    return drawn


def _ends(curves: list[Curve]) -> str:
    """In the moving mean: single steps are noise."""
    ends = {curve.name: curve.end[1] for curve in curves}
    words = ", ".join(f"{name} at {loss:.3f}" for name, loss in ends.items())
    if len(ends) < 2:
        return f"Only {words}: the other has no finite loss."
    return f"Ends: {words} ({change(ends['B'], ends['A'])})."


def _same_trainings(pair: Pair) -> Markup | None:
    same = [name for name in pair.a.training if name in pair.b.training and name not in pair.trained]
    return names(same) if same else None


def _commands(pair: Pair) -> list[str]:
    """This page again, and why a model of both differs."""
    commands = [["bam", "report", clean(pair.a.name), clean(pair.b.name)]]
    differing = [stage for stage in pair.a.made if stage in pair.b.made and not pair.is_same(stage)]
    if wanted := next((stage for stage in reversed(pair.trained) if stage in differing), None):
        refs = [clean(f"{wanted}@{run.made[wanted].key[:12]}") for run in (pair.a, pair.b)]
        commands.append(["bam", "diff", *refs])
    return [shlex.join(words) for words in commands]
