"""What happens to each stage, and why: records and leases in, decisions out.

    what is seen (first that holds)                           action   cause
    another run holds the stage's lease                       wait     lease
    forced                                                    run      forced
    the record does not hold (a file is missing, truncated)   run      damaged
    no record, and none under an older key                    run      missing
    no record; an older one has another version, config, ...  run      code, config, data (a source's content)
    an input runs, is being made elsewhere, or is another     run      input
    an input was rebuilt with other bytes than were read      run      input
    none of these                                             reuse    none

A stage that would run is `blocked` (input) when an input can neither be reused nor made. A stage that is not
selected never runs: it is reused if it is done and otherwise `blocked` (not selected); it is listed only if a
selected stage that would run needs it. What runs makes all that is selected downstream run: no early cut-off in a plan.
A run without `--force` then takes what its plan makes run for an input's sake, if that comes out as it was read.
A stage that runs waits for its checks too, as far as they are selected and run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bam_core.graph.key import describe_changes, input_keys, key12, payload_changes, stage_payload
from bam_core.graph.record import Record
from bam_core.graph.select import Selection
from bam_core.graph.stage import Pipeline, Stage
from bam_core.protocols import LeaseInfo

Action = Literal["run", "reuse", "wait", "blocked"]


@dataclass(frozen=True)
class Facts:
    """What the store says. damaged: why the record does not hold. previous: newest under another key."""

    record: Record | None = None
    damaged: str | None = None
    lease: LeaseInfo | None = None
    previous: Record | None = None


@dataclass(frozen=True)
class Decision:
    """cause: the word of the table above. after: the stages that must be done before this one may start."""

    stage: str
    key: str
    action: Action
    reason: str
    cause: str
    after: tuple[str, ...] = ()


Given = Mapping[tuple[str, str], Record]
"""(stage, role) -> the record that stands in for what the pipeline would make (`--input role=REF`)."""


def plan(
    pipeline: Pipeline,
    keys: Mapping[str, str],
    facts: Mapping[str, Facts],
    selection: Selection,
    *,
    now: float,
    given: Given | None = None,
    recipe: str = "RECIPE",
) -> list[Decision]:
    """Decide for every stage that is selected or needed, in the pipeline's order.

    keys: of `pipeline_keys`, with the keys of `given` as overrides. now: seconds since the epoch. recipe:
    as the user names it, for the commands in reasons.
    """
    planner = _Planner(pipeline, keys, facts, selection, now, given or {}, recipe)
    for stage in pipeline:
        planner.decided[stage.name] = planner.decide(stage)
    listed = set(planner.selected)
    for stage in reversed(pipeline.stages):  # what one waits for is listed, and what that waits for
        if stage.name in listed:
            decision = planner.decided[stage.name]
            is_shown = stage.name in planner.selected and decision.action in ("run", "blocked")
            listed |= set(planner.made_inputs(stage) if is_shown else decision.after)
    return [decision for name, decision in planner.decided.items() if name in listed]


def rebuilt_input(record: Record, inputs: Mapping[str, Record]) -> str | None:
    """The first role whose artifact is no longer the one that was read to make `record`, byte for byte."""
    for role, now in sorted(inputs.items()):
        read = record.inputs.get(role)
        if read is None or read.digest != now.digest:
            return role
    return None


class _Planner:
    def __init__(
        self,
        pipeline: Pipeline,
        keys: Mapping[str, str],
        facts: Mapping[str, Facts],
        selection: Selection,
        now: float,
        given: Given,
        recipe: str,
    ) -> None:
        self.selected, self.forced = selection.stages(pipeline), selection.forced(pipeline)
        self.keys, self.facts, self.now, self.given, self.recipe = keys, facts, now, given, recipe
        self.decided: dict[str, Decision] = {}

    def decide(self, stage: Stage) -> Decision:
        why = self._why_run(stage)
        lease = self.facts[stage.name].lease
        if lease is not None:
            wait_s = max(0, round(lease.expires - self.now))
            return self._decision(stage, "wait", "lease", f"held by {lease.owner} for {wait_s} s more")
        if stage.name not in self.selected:
            return self._bounded(stage, why)
        if why is None:
            return self._decision(stage, "reuse", "none", "done")
        for name in self.made_inputs(stage):
            if self.decided[name].action == "blocked":
                return self._decision(stage, "blocked", "input", f"needs {name}, {self._how_to_unblock(name)}")
        return self._decision(stage, "run", *why)

    def made_inputs(self, stage: Stage) -> list[str]:
        """The stages that fill the inputs, without the roles that are given."""
        return list(dict.fromkeys(p for role, p in stage.inputs.items() if (stage.name, role) not in self.given))

    def _decision(self, stage: Stage, action: Action, cause: str, reason: str) -> Decision:
        after = [name for name in self.made_inputs(stage) if self.decided[name].action != "reuse"]
        if action == "run":
            after += [name for name in stage.checks if self._is_made_now(name) and name not in after]
        if action == "wait":  # another run makes it, and may have what is missing here
            after = [name for name in after if self.decided[name].action != "blocked"]
        idle = action in ("reuse", "blocked")
        return Decision(stage.name, self.keys[stage.name], action, reason, cause, () if idle else tuple(after))

    def _is_made_now(self, name: str) -> bool:
        return name in self.selected and self.decided[name].action in ("run", "wait")

    def _bounded(self, stage: Stage, why: tuple[str, str] | None) -> Decision:
        """A stage outside the selection: reused as it is, or missing."""
        if self.facts[stage.name].record is None:
            assert why is not None
            return self._decision(stage, "blocked", "not selected", f"{why[1]}, and not selected")
        note = f"; {why[1]}, but it is not selected" if why else ""
        return self._decision(stage, "reuse", "none", f"done{note}")

    def _how_to_unblock(self, name: str) -> str:
        if name in self.selected:
            return "which is blocked"
        return f"which is not done and not selected: `bam run {self.recipe} --until {name}` makes it"

    def _why_run(self, stage: Stage) -> tuple[str, str] | None:
        """(cause, reason) to run, or None if what is there can be reused."""
        facts = self.facts[stage.name]
        if stage.name in self.forced:
            return "forced", "forced by --force"
        if facts.damaged is not None:
            return "damaged", facts.damaged.removeprefix(f"{stage.name}@{key12(self.keys[stage.name])}: ")
        if facts.record is None:
            return self._why_missing(stage, facts.previous)
        moving = self._moving_input(stage)
        if moving is not None:
            return "input", moving
        role = rebuilt_input(facts.record, self._input_records(stage))
        return None if role is None else ("input", f"{stage.inputs[role]} was rebuilt with other bytes")

    def _why_missing(self, stage: Stage, previous: Record | None) -> tuple[str, str]:
        if previous is None:
            return "missing", "never made"
        overrides = {place: record.key for place, record in self.given.items()}
        payload = stage_payload(stage, input_keys(stage, self.keys, overrides))
        changes = payload_changes(previous.payload, payload)
        own = [change for change in changes if change.cause != "input"]
        if own:
            return own[0].cause, describe_changes(own)
        return "input", self._moving_input(stage) or describe_changes(changes)

    def _moving_input(self, stage: Stage) -> str | None:
        """The input that will be another artifact by the time this stage starts, in words."""
        for action, words in (("run", "runs"), ("wait", "is being made by another run")):
            names = [name for name in self.made_inputs(stage) if self.decided[name].action == action]
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                return f"{names[0]}{more} {'run' if more and action == 'run' else words}"
        return None

    def _input_records(self, stage: Stage) -> dict[str, Record]:
        """Role -> the record that fills it now, where there is one."""
        records = {
            role: self.given.get((stage.name, role), self.facts[parent].record) for role, parent in stage.inputs.items()
        }
        return {role: record for role, record in records.items() if record is not None}
