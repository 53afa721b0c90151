"""Comparisons in the report: which pairs, what the table and the drawing say, and that they agree."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ET
from math import exp, inf, log
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bam_core.errors import ArtifactDamaged
from bam_core.evaluate.resample import DocumentScores
from bam_core.evaluate.significance import compare_all
from pipelines.report import ReportInputs, build_report
from pipelines.report.comparisons import compare_models, with_intervals
from pipelines.report.document_files import read_documents
from pipelines.report.seeds import mean_over_seeds
from pipelines.report.tables import perplexity_table
from tests.report.fakes import DOMAINS, PERPLEXITY, fake_run

SVG = "{http://www.w3.org/2000/svg}"
N_DOCUMENTS = 30


def documents(n_seeds: int = 3, **shifts: float) -> DocumentScores:
    """Around the figures of the fake run. shifts: `train_bam=0.1` makes a model worse by 10% (in logarithms)."""
    rng = np.random.default_rng(0)
    tokens = {domain: rng.integers(50, 500, N_DOCUMENTS) for domain in DOMAINS}
    level = {domain: rng.normal(0, 0.3, N_DOCUMENTS) for domain in DOMAINS}
    nll = {}
    for model, values in PERPLEXITY.items():
        of_seed = rng.normal(0, 0.004, (n_seeds, 1)) + shifts.get(model.replace(".", "_"), 0)
        nll[model] = {
            domain: (np.log(p) + level[domain] + of_seed + rng.normal(0, 0.01, (n_seeds, N_DOCUMENTS))) * tokens[domain]
            for domain, p in zip(DOMAINS, values, strict=True)
        }
    numbers = {domain: np.arange(N_DOCUMENTS) * 3 for domain in DOMAINS}
    return DocumentScores(tuple(range(n_seeds)), numbers, tokens, nll)


def compared_run(n_seeds: int = 3, **changes: Any) -> ReportInputs:
    return fake_run(**{"documents": documents(n_seeds), "baselines": ("train.btx",)} | changes)


def rows(text: str) -> dict[str, dict[str, str]]:
    return {row["model"]: row for row in csv.DictReader(io.StringIO(text))}


def write(path: Path, scores: DocumentScores, place: int = 0, **columns: Any) -> Path:
    """`documents.parquet` as the stage writes it, of one of the seeds. columns: change some."""
    found: dict[str, list[Any]] = {name: [] for name in ("model", "domain", "document", "nll", "tokens", "n_bytes")}
    for model, domains in scores.nll.items():
        for domain, nll in domains.items():
            found["model"] += [model] * nll.shape[1]
            found["domain"] += [domain] * nll.shape[1]
            found["document"] += scores.documents[domain].tolist()
            found["nll"] += nll[place].tolist()
            found["tokens"] += scores.tokens[domain].tolist()
            found["n_bytes"] += (4 * scores.tokens[domain]).tolist()
    changed = {name: value for name, value in (found | columns).items() if value is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(changed), path)
    return path


def test_every_mixture_dense_and_the_ensemble_meet_each_baseline_once():
    found = compare_models(compared_run(baselines=("train.btx", "dense"))).all
    assert [(one.model, one.baseline) for one in found] == [
        *(("dense", "train.btx"), ("ensemble", "train.btx"), ("train.bam", "train.btx")),
        *(("ensemble", "dense"), ("train.bam", "dense")),
    ]
    assert {one.n_comparisons for one in found} == {5}


def test_table_has_the_digits_of_the_comparisons(tmp_path: Path):
    inputs = compared_run()
    build_report(inputs, tmp_path)
    pairs = [(model, "train.btx") for model in ("dense", "ensemble", "train.bam")]
    expected = compare_all(inputs.documents, pairs)
    law = compare_all(inputs.documents, pairs, figure="perplexity.law")
    found = rows((tmp_path / "tables/comparisons.csv").read_text())
    assert list(found) == ["dense", "ensemble", "train.bam"]
    for one, in_law in zip(expected, law, strict=True):
        row = found[one.model]
        assert float(row["difference"]) == one.difference
        assert float(row["corrected_low"]) == one.corrected_low
        assert float(row["corrected_p"]) == one.corrected_p
        assert (row["baseline"], row["word"], row["seeds"]) == ("train.btx", one.word, "3")
        assert row["documents"] == str(4 * N_DOCUMENTS)
        assert float(row["difference.law"]) == in_law.difference
        assert float(row["high.law"]) == in_law.high
    assert {row["word"] for row in found.values()} == {"better", "worse", "not distinguishable"}


def test_page_tells_how_to_read_it(tmp_path: Path):
    build_report(compared_run(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert '<section id="comparisons">' in page
    assert '<a href="#comparisons">' in page
    assert "the interval over documents and 3 seeds, at 95%" in page
    assert "there are 3 comparisons" in page


def test_page_says_what_is_of_all_seeds_and_what_of_the_first(tmp_path: Path):
    models = {name: value | {"seeds": [0, 1, 2]} for name, value in fake_run().perplexity["models"].items()}
    build_report(compared_run(perplexity={"models": models}), tmp_path / "three")
    page = (tmp_path / "three" / "report.html").read_text()
    assert "the geometric mean over the seeds 0, 1, 2" in page
    assert page.count("Of the first seed, 0.") == 3, "training, step 0, routing"
    build_report(compared_run(1), tmp_path / "one")
    assert "first seed" not in (tmp_path / "one" / "report.html").read_text()


def test_one_seed_says_that_the_interval_is_over_documents_only(tmp_path: Path):
    build_report(compared_run(1), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Over documents only: one seed." in page
    assert "what another would change is in no interval" in page
    assert "average_low" not in (tmp_path / "tables/perplexity.csv").read_text()


def test_without_documents_there_is_no_section(tmp_path: Path):
    build_report(fake_run(baselines=("train.btx",)), tmp_path)
    assert "comparisons" not in (tmp_path / "report.html").read_text().lower().replace("compared", "")
    assert not (tmp_path / "tables/comparisons.csv").exists()
    build_report(fake_run(documents=documents(), baselines=("no.such",)), tmp_path / "none")
    assert not (tmp_path / "none/tables/comparisons.csv").exists()


def test_perplexity_table_marks_who_is_as_good_as_the_best():
    near = {model: dict(value) for model, value in fake_run().perplexity["models"].items()}
    bam = {domain: np.copy(nll) for domain, nll in documents().nll["train.bam"].items()}
    scores = documents()
    scores.nll["train.btx"].update({domain: np.roll(nll, 1, 0) * 1.0001 for domain, nll in bam.items()})
    inputs = compared_run(documents=scores, perplexity={"models": near})
    compared = compare_models(inputs)
    found = rows(with_intervals(perplexity_table(inputs), compared).csv())
    assert {model: row["beside_best"] for model, row in found.items() if row["beside_best"]} == {
        **{"train.bam": "best", "train.btx": "not distinguishable"},
        **{"dense": "worse", "ensemble": "worse"},
    }
    assert str(compared.caveats[0]) == (
        "Not distinguishable from <code>train.bam</code> by average perplexity: <code>train.btx</code>."
    )
    low, high = float(found["train.bam"]["average_low"]), float(found["train.bam"]["average_high"])
    assert low < float(found["train.bam"]["average_perplexity"]) * 1.1
    assert low < high


def test_forest_plot_shows_what_the_table_says(tmp_path: Path):
    inputs = compared_run(documents=documents(train_bam=0.09))
    compared = compare_models(inputs)
    build_report(inputs, tmp_path)
    root = ET.fromstring((tmp_path / "figures/forest-train.btx.svg").read_text())
    assert float(root.get("width")) <= 400
    for one in compared.all:
        told = next(title for title in (found.text for found in root.iter(f"{SVG}title")) if one.model in title[:12])
        assert one.word in told
    squares = [e for e in root.iter(f"{SVG}rect") if e.get("width") == "8"]
    circles = list(root.iter(f"{SVG}circle"))
    assert len(squares) == sum(one.is_distinguishable for one in compared.all)
    assert len(circles) == len(compared.all) - len(squares)
    [zero] = [e for e in root.iter(f"{SVG}line") if e.get("class") == "axis"]
    better = [one.word == "better" for one in compared.all if one.is_distinguishable]
    assert [float(square.get("x")) + 4 < float(zero.get("x1")) for square in squares] == better


def test_a_loss_that_is_not_finite_breaks_no_report(tmp_path: Path):
    scores = documents()
    scores.nll["train.bam"]["law"][1, 2] = np.inf
    build_report(compared_run(documents=scores), tmp_path)
    row = rows((tmp_path / "tables/comparisons.csv").read_text())["train.bam"]
    assert (row["difference"], row["word"]) == ("nan", "not distinguishable")
    assert "a loss is not finite" in row["notes"]


def test_equal_inputs_give_equal_bytes(tmp_path: Path):
    for name in ("a", "b"):
        build_report(compared_run(), tmp_path / name)
    for file in ("report.html", "tables/comparisons.csv", "figures/forest-train.btx.svg"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_reads_the_documents_of_each_seed(tmp_path: Path):
    scores = documents()
    read = read_documents({seed: write(tmp_path / f"{seed}.parquet", scores, seed) for seed in range(3)})
    assert read.seeds == (0, 1, 2)
    assert list(read.nll) == list(PERPLEXITY)
    for domain in DOMAINS:
        assert np.array_equal(read.documents[domain], scores.documents[domain])
        assert np.array_equal(read.tokens[domain], scores.tokens[domain])
        for model in PERPLEXITY:
            assert np.array_equal(read.nll[model][domain], scores.nll[model][domain])


def test_order_of_rows_does_not_matter(tmp_path: Path):
    path = write(tmp_path / "a.parquet", documents())
    table = pq.read_table(path)
    pq.write_table(table.take(pa.array(np.random.default_rng(1).permutation(len(table)))), tmp_path / "b.parquet")
    first, second = read_documents({0: path}), read_documents({0: tmp_path / "b.parquet"})
    for domain in DOMAINS:
        assert np.array_equal(first.nll["train.bam"][domain], second.nll["train.bam"][domain])


def without(scores: DocumentScores, **of: Any) -> DocumentScores:
    parts = {name: getattr(scores, name) for name in ("seeds", "documents", "tokens", "nll")}
    return DocumentScores(**parts | of)


def test_other_documents_under_a_seed_are_named(tmp_path: Path):
    scores = documents()
    first = write(tmp_path / "0.parquet", scores)
    moved = scores.documents | {"law": np.where(scores.documents["law"] == 3, 1000, scores.documents["law"])}
    second = write(tmp_path / "1.parquet", without(scores, documents=moved))
    with pytest.raises(
        ArtifactDamaged, match=r"1.parquet: seed on law: lacks document 3 beside .*0.parquet: seed on law"
    ):
        read_documents({0: first, 1: second})


def test_other_tokens_and_documents_of_one_model_are_named(tmp_path: Path):
    table = pq.read_table(write(tmp_path / "a.parquet", documents())).to_pylist()
    for row in table:
        if (row["model"], row["domain"]) == ("dense", "code") and row["document"] < 24:
            row["tokens"] += 1
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "b.parquet")
    with pytest.raises(
        ArtifactDamaged, match=r"dense on code: has other tokens in documents 0, 3, 6, 9, 12 and 3 more"
    ):
        read_documents({0: tmp_path / "b.parquet"})
    kept = [row for row in table if (row["model"], row["document"]) != ("expert.law", 6)]
    pq.write_table(pa.Table.from_pylist(kept), tmp_path / "c.parquet")
    with pytest.raises(ArtifactDamaged, match=r"expert.law on general: lacks document 6 beside"):
        read_documents({0: tmp_path / "c.parquet"})
    pq.write_table(pa.Table.from_pylist([*table, table[0]]), tmp_path / "d.parquet")
    with pytest.raises(ArtifactDamaged, match=r"seed on general: has document 0 twice"):
        read_documents({0: tmp_path / "d.parquet"})


def test_a_model_or_domain_that_a_seed_lacks_is_named(tmp_path: Path):
    scores = documents()
    first = write(tmp_path / "0.parquet", scores)
    fewer = {model: nll for model, nll in scores.nll.items() if model != "dense"}
    with pytest.raises(ArtifactDamaged, match=r"1.parquet: of the models that were scored, lacks dense"):
        read_documents({0: first, 1: write(tmp_path / "1.parquet", without(scores, nll=fewer))})
    with pytest.raises(ArtifactDamaged, match=r"0.parquet: of the models that were scored, has also dense"):
        read_documents({1: tmp_path / "1.parquet", 0: first})


@pytest.mark.parametrize("content", [None, b"", b"no parquet"])
def test_a_damaged_file_is_named(content: bytes | None, tmp_path: Path):
    path = tmp_path / "documents.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactDamaged, match=r"documents.parquet: cannot be read as documents with model, domain"):
        read_documents({0: path})


def test_a_missing_column_is_named(tmp_path: Path):
    with pytest.raises(ArtifactDamaged, match="tokens"):
        read_documents({0: write(tmp_path / "a.parquet", documents(), tokens=None)})


def test_figures_of_seeds_become_their_mean():
    found = mean_over_seeds(
        [
            {"models": {"a": {"average_perplexity": p, "nll": log(p), "tokens": 5, "seeds": [s], "name": "x"}}}
            for s, p in ((0, 2.0), (1, 8.0))
        ]
    )
    its = found["models"]["a"]
    assert its == {"average_perplexity": pytest.approx(4), "nll": log(4), "tokens": 5, "seeds": [0, 1], "name": "x"}
    assert its["average_perplexity"] == pytest.approx(exp(its["nll"])), "the perplexity of the mean loss"
    assert mean_over_seeds([{"a": 1}]) == {"a": 1}
    assert mean_over_seeds([{"perplexity": 2.0}, {"perplexity": inf}]) == {"perplexity": inf}


def test_reads_the_evaluations_of_all_seeds(tmp_path: Path):
    scores = documents(2)
    for seed, name in enumerate(("evaluate", "evaluate.s1")):
        write(tmp_path / name / "documents.parquet", scores, seed)
        models = {m: {"average_perplexity": 2.0 + seed, "seeds": [seed]} for m in PERPLEXITY}
        (tmp_path / name / "perplexity.json").write_text(json.dumps({"models": models}))
    read = ReportInputs.read(
        "r", evaluate=tmp_path / "evaluate", models={}, other_seeds=[tmp_path / "evaluate.s1"], baselines=["train.btx"]
    )
    assert read.documents.seeds == (0, 1)
    assert read.models["train.bam"]["average_perplexity"] == pytest.approx(6**0.5)
    assert read.models["train.bam"]["seeds"] == [0, 1]
    assert compare_models(read).all[0].seeds == (0, 1)
