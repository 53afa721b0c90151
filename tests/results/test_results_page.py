"""The results page: rows beside the paper's, claims with verdicts, and where the numbers come from."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bam_core.evaluate.resample import DocumentScores
from bam_core.evaluate.significance import Comparison
from pipelines import wiring
from pipelines.cli import main
from pipelines.recipe.study import Claim, Row, StudyTable
from pipelines.report.formats import gain
from pipelines.results.markdown import margin
from pipelines.results.page import VERDICTS, between_marks, page, summary
from pipelines.results.tables import Evaluated, ShownTable, paper_difference, study_tables

DOMAINS = ("general", "law")
LOSS = {"train.bam": 2.0, "train.btx": 2.1, "train.other": 2.05, "seed": 3.0}
FIGURES = {"params_total": 5_620_000, "params_active": 3_130_000, "flops_per_token": 8.88e6, "train_tokens": 1_200_000}
TABLE = StudyTable(
    title="Equal | parameters",
    source="BAM, Table 5",
    rows={
        "bam": Row(label="BAM", paper={"general": 24.0, "law": 6.0}),
        "btx|other": Row(label="BTX", paper={"general": 25.0, "law": 5.0}),
        "seed": Row(),
    },
    claims=[Claim(model="bam", below="btx|other"), Claim(model="seed", below="bam")],
)


def evaluated(noise: float = 0.01, n_documents: int = 30) -> Evaluated:
    rng = np.random.default_rng(0)
    tokens = {domain: rng.integers(200, 400, n_documents) for domain in DOMAINS}
    shared = {domain: rng.normal(0, 0.3, n_documents) for domain in DOMAINS}
    nll = {
        model: {
            domain: tokens[domain] * (loss + shared[domain] + rng.normal(0, noise, (3, n_documents)))
            for domain in DOMAINS
        }
        for model, loss in LOSS.items()
    }
    numbers = {domain: np.arange(n_documents) for domain in DOMAINS}
    scores = DocumentScores((0, 1, 2), numbers, tokens, nll)
    made = {"code": "abc", "cost": "9 trainings"}
    return Evaluated("study/table5", (0, 1, 2), DOMAINS, scores, dict.fromkeys(LOSS, FIGURES), made)


def test_a_claim_is_confirmed_refuted_or_neither() -> None:
    [table] = study_tables({"t": TABLE}, evaluated())
    assert [claim.verdict for claim in table.claims] == ["confirmed", "refuted"]
    [noisy] = study_tables({"t": TABLE}, evaluated(noise=3.0, n_documents=4))
    assert noisy.claims[0].verdict == "not distinguishable"


def test_the_best_of_several_counts() -> None:
    [table] = study_tables({"t": TABLE}, evaluated())
    row = next(row for row in table.rows if row.label == "BTX")
    assert (row.model, row.chosen_of) == ("train.other", 2)
    assert table.claims[0].comparison.baseline == "train.other"


def test_a_number_is_the_geometric_mean_over_seeds() -> None:
    found = evaluated()
    [table] = study_tables({"t": TABLE}, found)
    nll, tokens = found.scores.nll["train.bam"]["law"], found.scores.tokens["law"]
    by_hand = np.prod([np.exp(one.sum() / tokens.sum()) for one in nll]) ** (1 / 3)
    assert table.rows[0].perplexity["law"] == pytest.approx(by_hand, rel=1e-12)


def test_all_claims_of_a_recipe_are_one_family() -> None:
    tables = study_tables({"one": TABLE, "two": TABLE.model_copy(update={"claims": TABLE.claims[:1]})}, evaluated())
    assert {claim.comparison.n_comparisons for table in tables for claim in table.claims} == {2}, (
        "equal ones count once"
    )


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        ({"general": 24.0, "law": 6.0}, {"general": 25.0, "law": 5.0}, 0.0),
        ({"general": 24.0, "law": 6.0, "average": 1.0}, {"law": 8.0, "average": 2.0}, -0.25),
        ({"average": 9.0}, {"average": 10.0}, -0.1),
        ({"general": 1.0}, {"law": 1.0}, None),
        ({}, {}, None),
    ],
)
def test_the_papers_difference(one: dict[str, float], other: dict[str, float], difference: float | None) -> None:
    found = paper_difference(one, other)
    assert found is None if difference is None else found == pytest.approx(difference)


def test_the_page_has_every_number_and_whence_it_came() -> None:
    found = evaluated()
    text = page([(found, study_tables({"t": TABLE}, found))])
    assert "## Equal | parameters (BAM, Table 5)" in text
    for word in (
        "(24.00)",
        "(better of 2)",
        "5.62M",
        "8.88M",
        "confirmed",
        "refuted",
        "`study/table5`",
        "0, 1, 2",
        "abc",
    ):
        assert word in text, word
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines if "parameters (active)" in line or "5.62M" in line} == {9}
    assert text == page([(found, study_tables({"t": TABLE}, found))])


def test_it_says_so_where_the_paper_is_not_found() -> None:
    table = TABLE.model_copy(update={"claims": [Claim(model="btx|other", below="bam")]})
    found = evaluated()
    text = page([(found, study_tables({"t": table}, found))])
    assert (
        "- The paper has BTX 0.0% from BAM, a difference that the interval excludes; the opposite is found here: **+"
        in text
    )
    assert "paper has" not in page([(found, study_tables({"t": TABLE.model_copy(update={"claims": []})}, found))])


def test_it_begins_with_how_many_claims_of_each_table_hold() -> None:
    found = evaluated()
    text = page([(found, study_tables({"t": TABLE}, found))])
    [line] = [line for line in text.splitlines() if "](#" in line]
    assert (
        line == "| [Equal \\| parameters (BAM, Table 5)](#equal--parameters-bam-table-5) | `study/table5` | 1 | 1 |  |"
    )


MARGINS = StudyTable(
    title="Margin by expert tokens",
    kind="margins",
    setting="phases.expert.tokens",
    rows=TABLE.rows,
    claims=[Claim(model="bam", below="btx|other"), Claim(model="bam", below="seed")],
)


def of_recipe(name: str, tokens: int, noise: float) -> tuple[Evaluated, list[ShownTable]]:
    found = replace(evaluated(noise), recipe=name, settings={"phases.expert.tokens": tokens})
    return found, study_tables({"t": TABLE, "margins": MARGINS}, found)


def test_margins_of_several_recipes_are_one_table() -> None:
    shown = [of_recipe("short.yaml", 1_200_000, 0.01), of_recipe("long.yaml", 3_700_000, 0.02)]
    text = page(shown)
    assert text.count("## Margin by expert tokens") == 1
    table = text.partition("## Margin by expert tokens")[2].partition("##")[0]
    lines = [line.split(" | ") for line in table.splitlines() if line.startswith("|")]
    assert lines[0] == ["| model", "`phases.expert.tokens`", "against BTX", "against seed", "recipe, seeds |"]
    assert [line[1] for line in lines[2:4]] == ["1.20M", "3.70M"]
    assert [line[-1] for line in lines[2:4]] == ["`short.yaml`, 3 |", "`long.yaml`, 3 |"]
    for line, (_, tables) in zip(lines[2:4], shown, strict=True):
        assert line[2:4] == [margin(claim.comparison) for claim in tables[1].claims]
    assert lines[4] == ["| the paper", "", "0.0%", "", " |"]


def test_equal_titles_of_several_recipes_are_told_apart() -> None:
    text = page([of_recipe("short.yaml", 1_200_000, 0.01), of_recipe("long.yaml", 3_700_000, 0.02)])
    headings = [line for line in text.splitlines() if line.startswith("## Equal")]
    assert headings == [f"## Equal | parameters (BAM, Table 5), {name}.yaml" for name in ("short", "long")]


def test_a_margin_is_bold_where_it_is_clear_of_zero() -> None:
    its = study_tables({"t": TABLE}, evaluated())[0].claims[0].comparison
    assert margin(its).startswith(f"**{gain(its.difference)}** [")
    assert not margin(replace(its, corrected_p=0.5)).startswith("**")
    assert margin(replace(its, corrected_high=30.0)).endswith(", \u00d731]")


def test_names_cannot_break_the_table() -> None:
    rows = {"bam": Row(label="a|b\nc"), "btx|other": Row(), "seed": Row()}
    table = TABLE.model_copy(update={"rows": rows, "claims": []})
    text = page([(evaluated(), study_tables({"t": table}, evaluated()))])
    assert "| a\\|b\ufffdc |" in text


def test_the_readmes_table_goes_between_its_marks() -> None:
    found = evaluated()
    claims = summary([(found, study_tables({"t": TABLE}, found))])
    readme = "before\n<!-- results -->\nold\n<!-- /results -->\nafter\n"
    changed = between_marks(readme, "results", claims)
    assert changed is not None
    assert changed.startswith("before\n<!-- results -->\nOf 2 claims: ")
    assert changed.endswith("<!-- /results -->\nafter\n")
    assert "old" not in changed
    assert between_marks(changed, "results", claims) == changed
    assert between_marks("no marks", "results", claims) is None


def test_the_readmes_table_holds_each_first_claim_and_all_that_are_not_confirmed() -> None:
    found = evaluated()
    [table] = study_tables({"t": TABLE}, found)
    first, second = table.claims
    signs = {"confirmed": (-0.1, 0.0), "refuted": (0.1, 0.0), "not distinguishable": (-0.1, 1.0)}

    def its(verdict: str) -> Comparison:
        difference, p = signs[verdict]
        return replace(first.comparison, difference=difference, corrected_p=p)

    rows = {}
    for verdicts in itertools.product(VERDICTS, repeat=2):
        claims = (replace(first, comparison=its(verdicts[0])), replace(second, comparison=its(verdicts[1])))
        text = summary([(found, [replace(table, claims=claims)])])
        assert sum(map(int, re.findall(r"(\d+) (?:confirmed|refuted|not distinguishable)", text))) == 2
        rows[verdicts] = [line.split(" | ")[-1] for line in text.splitlines() if line.startswith("| ")][1:]
        rows[verdicts] = [line.removesuffix(" |") for line in rows[verdicts] if "---" not in line]
    assert rows == {(a, b): [a] if b == "confirmed" else [a, b] for a, b in rows}


def test_the_folder_of_out_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [(evaluated(), study_tables({"t": TABLE}, evaluated()))]
    monkeypatch.setattr(wiring, "study_results", lambda loaded, settings: found)
    out = tmp_path / "new" / "folder" / "page.md"
    assert main(["results", "study/core", "--store", str(tmp_path / "store"), "--out", str(out)]) == 0
    assert out.read_text() == page(found)
    assert capsys.readouterr().out == f"1 tables and 2 claims in {out}\n"
