"""How a run ends: what was made, where it is, and the three commands that one would want next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.store import ArtifactStore
from pipelines.cli.app import Session
from pipelines.cli.ending import next_text, result_text
from pipelines.cli.options import continuing
from pipelines.runner import RunResult, StageResult
from tests.infra.model_store import made


def stage(name: str, status: str = "done", key: str = "ab" * 32) -> StageResult:
    return StageResult(name, key, "run", status, 1.0, f"/store/artifacts/{name}/{key[:12]}")


def ended(*stages: StageResult) -> RunResult:
    return RunResult("quick-1", "done", 12.3, stages)


def commands(shown: str) -> list[str]:
    heading, *lines = shown.splitlines()
    assert heading == "Next:"
    return [line.partition("  #")[0].strip() for line in lines]


def test_what_was_made_and_where() -> None:
    said = result_text(Session(), ended(stage("tokenizer", "reused"), stage("seed"), stage("expert.law")))
    assert said.splitlines() == [
        "\x1b[32mdone\x1b[0m in 12s: 1 reused, 2 done",
        "made: seed, expert.law",
        "in: /store",
    ]


def test_nothing_new_names_the_place_alone() -> None:
    assert result_text(Session(), ended(stage("seed", "reused"))).splitlines()[1:] == ["in: /store"]


def test_no_password_is_shown() -> None:
    remote = StageResult("seed", "ab" * 32, "run", "done", 1.0, "s3://me:secret@host/bam/artifacts/seed/abababababab")
    assert "secret" not in result_text(Session(), ended(remote))


def test_a_whole_run_offers_its_mixture() -> None:
    shown = next_text(
        Session(), ended(stage("seed"), stage("mix.bam"), stage("train.bam"), stage("train.bam.s2")), None
    )
    assert commands(shown) == ["bam generate train.bam 'It was'", "bam ui", "bam export train.bam exported"]


def test_of_several_mixtures_the_best_is_offered(here: Path) -> None:
    store = ArtifactStore(str(here / "bam_store"))
    figures = {"train.bam": 9.0, "train.btx": 8.0, "seed": 1.0}
    models = {name: {"average_perplexity": value, "domains": {}, "params_active": 1} for name, value in figures.items()}

    def write(out: Path) -> None:
        (out / "perplexity.json").write_text(json.dumps({"models": models}))

    record = made(store, "evaluate", {}, write)
    stages = [stage(name) for name in ("seed", "train.bam", "train.btx")]
    result = ended(*stages, stage("evaluate", key=record.key))
    assert commands(next_text(Session(), result, None))[0] == "bam generate train.btx 'It was'"


def test_a_part_of_a_recipe_is_followed_by_the_rest() -> None:
    shown = next_text(Session(), ended(stage("seed")), "bam run quickstart")
    assert commands(shown) == ["bam run quickstart", "bam generate seed 'It was'", "bam ui"]


def test_without_a_model_the_artifact_is_shown() -> None:
    assert commands(next_text(Session(), ended(stage("data.law")), None)) == ["bam show data.law", "bam ls", "bam runs"]
    assert commands(next_text(Session(), ended(), None)) == ["bam ls", "bam runs"]


def test_the_commands_name_the_places_that_were_typed_but_no_password() -> None:
    typed = {"store": "my store", "tracking_uri": "http://me:secret@host", "address": "auto"}
    shown = next_text(Session(typed=typed), ended(stage("train.bam")), None)
    assert commands(shown) == [
        "bam generate train.bam 'It was' --store 'my store'",
        "bam ui --store 'my store'",
        "bam export train.bam exported --store 'my store'",
    ]


@pytest.mark.parametrize(
    ("typed", "program"),
    [
        (".venv/bin/bam", ".venv/bin/bam"),
        ("HERE/.venv/bin/bam", ".venv/bin/bam"),
        ("/opt/a b/bam", "'/opt/a b/bam'"),
        ("/usr/lib/python/__main__.py", "bam"),
    ],
)
def test_a_shell_that_does_not_know_bam_is_told_where_it_is(
    here: Path, monkeypatch: pytest.MonkeyPatch, typed: str, program: str
) -> None:
    monkeypatch.setenv("PATH", str(here))
    monkeypatch.setattr("sys.argv", [typed.replace("HERE", str(Path.cwd()))])
    rest = continuing("run", ["quickstart"], {}, Session())
    shown = next_text(Session(), ended(stage("data.law")), rest)
    assert commands(shown) == [f"{program} run quickstart", f"{program} show data.law", f"{program} ls"]
    (here / "bam").touch(mode=0o755)
    assert commands(next_text(Session(), ended(), None)) == ["bam ls", "bam runs"]


def test_a_narrow_terminal_gets_the_commands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    result = ended(stage("train.bam"))
    assert "  # what the model says" in next_text(Session(), result, None)
    monkeypatch.setattr("pipelines.cli.text.columns", lambda: 60)
    shown = next_text(Session(), result, None)
    assert max(map(len, shown.splitlines())) <= 60
