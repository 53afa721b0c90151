"""`evaluate` on tiny models and rows: the ensemble's entry, what is behind it, and the routing's labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import exp, log
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from bam_core.checkpoint import load_model, write_model
from bam_core.config import FFNExperts, ModelConfig
from bam_core.data.packing import pack
from bam_core.data.shards import ShardedRows, write_shards
from bam_core.data.tokenize import SMALLEST_VOCABULARY, Tokenizer, train_bpe
from bam_core.evaluate.documents import Documents, choose
from bam_core.evaluate.strided import score_documents
from bam_core.graph.record import InputRef, Record
from bam_core.graph.stage import Resources
from bam_core.nn.lm import LM, init_weights
from bam_core.protocols import StageContext
from pipelines.stages.evaluate import lineage_costs, run

VOCAB = SMALLEST_VOCABULARY
DENSE = ModelConfig(vocab_size=VOCAB, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=12, max_seq_len=8)
MIXTURE = replace(
    DENSE,
    ffn=FFNExperts(3, 1, slots=("general", "law", "general"), layers=(1,), soft_layers=()),
    experts=("general", "law"),
)
TEXTS = {
    "general": ["a house", "und so weiter, und so fort", "", "né", "the morning after"],
    "law": ["the licensee", "pursuant to the grant of this licence", "no party shall"],
}
"""The last one of each is cut."""
CONFIGS = {"seed": DENSE, "expert.law": DENSE, "train.x": MIXTURE}
TRAINED = {"seed": 1000, "expert.law": 300, "expert.code": 20, "train.x": 0}


def record(stage: str, parents: tuple[str, ...] = (), **metrics: Any) -> Record:
    inputs = {parent: InputRef(parent, f"key of {parent}", "d") for parent in parents}
    return Record(stage, f"key of {stage}", {}, inputs, (), "d", metrics, {}, 0.0, 1.0, 1)


def trained(stage: str, *parents: str, behind: int = 0) -> Record:
    tokens = TRAINED[stage]
    figures = {"train_tokens": tokens, "lineage_tokens": tokens + behind}
    flops = {name.replace("tokens", "flops"): 7 * value for name, value in figures.items()}
    return record(stage, parents, **figures, **flops)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text(train_bpe([], VOCAB))
    tokenizer = Tokenizer.load(folder / "tokenizer" / "tokenizer.json")
    for domain, texts in TEXTS.items():
        documents = tokenizer.encode_batch(texts)
        rows = pack(documents, DENSE.max_seq_len, tokenizer.eos_id, tokenizer.token_bytes)
        write_shards(folder / f"data.{domain}" / "valid", rows)
    for number, (name, config) in enumerate(CONFIGS.items()):
        model = LM(config)
        init_weights(model, number)
        model.embed.weight.data *= 5  # so that the models differ
        (folder / name).mkdir()
        write_model(folder / name, config, model.state_dict().items(), tokenizer=None, card="")
    return {path.name: path for path in folder.iterdir()}


def evaluated(inputs: Mapping[str, Path], out: Path, **config: Any) -> dict[str, Any]:
    out.mkdir()
    records = {
        "seed": trained("seed", "data.general", "tokenizer"),
        "expert.law": trained("expert.law", "seed", "data.law", behind=1000),
        "train.x": trained("train.x", "mix.x", "data.law", behind=1300),
    }
    base = {
        **{"models": list(CONFIGS), "domains": ["general", "law"], "tokens": 10_000, "stride": 4},
        **{"dtype": "fp64", "seeds": [0]},
    }
    context = StageContext(
        stage="evaluate",
        key="k",
        config=base | config,
        runtime={},
        resources=Resources(),
        inputs=inputs,
        records=records,
        out=out,
        trainer=None,  # type: ignore[arg-type]
        sources=None,  # type: ignore[arg-type]
        history=list,
    )
    metrics = run(context)
    found = {name: json.loads((out / f"{name}.json").read_text())["models"] for name in ("perplexity", "routing")}
    scoring = json.loads((out / "perplexity.json").read_text())["scoring"]
    documents = pq.read_table(out / "documents.parquet")
    return found | {"metrics": dict(metrics), "scoring": scoring, "documents": documents}


def documents_of(inputs: Mapping[str, Path], domain: str) -> Documents:
    tokenizer = Tokenizer.load(inputs["tokenizer"] / "tokenizer.json")
    return Documents.of(ShardedRows(inputs[f"data.{domain}"] / "valid"), tokenizer.token_bytes)


def test_what_is_scored_are_the_texts(inputs: dict[str, Path], tmp_path: Path):
    found = evaluated(inputs, tmp_path / "out", ensemble=["seed", "expert.law"])
    assert found["scoring"] == {"context": 8, "stride": 4}
    rows = found["documents"].to_pylist()
    assert list(rows[0]) == ["model", "domain", "document", "nll", "tokens", "n_bytes"]
    assert [str(field.type) for field in found["documents"].schema] == ["string"] * 2 + [
        *("int64", "double", "int64", "int64")
    ]
    models = [*CONFIGS, "ensemble"]
    order = [(models.index(row["model"]), row["domain"] == "law", row["document"]) for row in rows]
    assert order == sorted(order)
    for name in models:
        for domain, texts in TEXTS.items():
            mine = [row for row in rows if (row["model"], row["domain"]) == (name, domain)]
            assert [row["n_bytes"] for row in mine] == [len(text.encode()) for text in texts[:-1]]
            assert [row["tokens"] for row in mine] == [len(text.encode()) + 1 for text in texts[:-1]]
            score = found["perplexity"][name]["domains"][domain]
            total = sum(row["nll"] for row in mine)
            assert score["nll"] * score["tokens"] == pytest.approx(total, rel=1e-14)
            assert score["bits_per_byte"] == pytest.approx(total / log(2) / sum(row["n_bytes"] for row in mine))


def test_the_averages_and_what_is_forgotten(inputs: dict[str, Path], tmp_path: Path):
    models = evaluated(inputs, tmp_path / "out", ensemble=["seed", "expert.law"])["perplexity"]
    for name, model in models.items():
        scores = model["domains"].values()
        mean = sum(score["nll"] * score["tokens"] for score in scores) / sum(score["tokens"] for score in scores)
        assert model["token_average_nll"] == pytest.approx(mean, rel=1e-14)
        assert model["token_average_perplexity"] == pytest.approx(exp(mean))
        assert model["average_perplexity"] == pytest.approx(sum(score["perplexity"] for score in scores) / 2)
        was = models["seed"]["domains"]["general"]["perplexity"]
        assert model["forgetting"] == pytest.approx(model["domains"]["general"]["perplexity"] / was - 1)
        assert (model["forgetting"] == 0) == (name == "seed")


def test_without_the_seed_nothing_is_known_to_be_forgotten(inputs: dict[str, Path], tmp_path: Path):
    models = evaluated(inputs, tmp_path / "out", models=["expert.law"])["perplexity"]
    assert models["expert.law"]["forgetting"] is None


def test_the_same_again_byte_for_byte(inputs: dict[str, Path], tmp_path: Path):
    for name in ("one", "two"):
        evaluated(inputs, tmp_path / name, ensemble=["seed", "expert.law"])
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert set(one) == {"perplexity.json", "routing.json", "tasks.json", "documents.parquet"}


def test_the_ensemble_is_computed_from_its_experts(inputs: dict[str, Path], tmp_path: Path):
    found = evaluated(inputs, tmp_path / "out", ensemble=["seed", "expert.law"])
    ensemble, models = found["perplexity"]["ensemble"], found["perplexity"]
    experts = [load_model(inputs[name], dtype=torch.float64) for name in ("seed", "expert.law")]
    for domain in ("general", "law"):
        one, other = (score_documents(model, choose(documents_of(inputs, domain), 10_000), 4) for model in experts)
        # A domain is drawn for a whole document, so its probability is the mean of the experts' probabilities of it.
        nll = [-log((exp(-a) + exp(-b)) / 2) for a, b in zip(one.nll, other.nll, strict=True)]
        score = ensemble["domains"][domain]
        assert score["nll"] == pytest.approx(sum(nll) / one.tokens.sum(), abs=1e-12)
        assert score["perplexity"] == pytest.approx(exp(score["nll"]))
        assert score["tokens"] == models["seed"]["domains"][domain]["tokens"] == one.tokens.sum()
        assert set(score) == set(models["seed"]["domains"][domain])
        assert all(abs(score["nll"] - models[name]["domains"][domain]["nll"]) > 1e-3 for name in ("seed", "expert.law"))
    perplexities = [ensemble["domains"][domain]["perplexity"] for domain in ("general", "law")]
    assert ensemble["average_perplexity"] == pytest.approx(sum(perplexities) / 2)
    assert found["metrics"]["average_perplexity.ensemble"] == ensemble["average_perplexity"]


def test_what_the_ensemble_costs_is_the_sum_over_its_experts(inputs: dict[str, Path], tmp_path: Path):
    models = evaluated(inputs, tmp_path / "out", ensemble=["seed", "expert.law"])["perplexity"]
    ensemble = models["ensemble"]
    assert set(ensemble) == set(models["seed"]) | {"experts"}
    for figure in ("params_total", "params_active", "flops_per_token"):
        assert ensemble[figure] == models["seed"][figure] + models["expert.law"][figure] > 0
    assert (ensemble["train_tokens"], ensemble["train_flops"]) == (0, 0)
    assert (ensemble["lineage_tokens"], ensemble["lineage_flops"]) == (1300, 7 * 1300)
    assert ensemble["experts"] == ["seed", "expert.law"]


@pytest.mark.parametrize("config", [{}, {"ensemble": []}])
def test_no_ensemble_unless_asked_for(inputs: dict[str, Path], tmp_path: Path, config: dict[str, Any]):
    assert set(evaluated(inputs, tmp_path / "out", **config)["perplexity"]) == set(CONFIGS)


def test_an_expert_that_is_not_evaluated_is_an_error_of_ours(inputs: dict[str, Path], tmp_path: Path):
    with pytest.raises(AssertionError, match=r"expert\.code"):
        evaluated(inputs, tmp_path / "out", ensemble=["seed", "expert.code"])


def test_routing_names_the_experts_of_each_branch(inputs: dict[str, Path], tmp_path: Path):
    routing = evaluated(inputs, tmp_path / "out")["routing"]
    assert set(routing) == {"train.x"}
    found = routing["train.x"]
    assert found["experts"] == ["general", "law"]
    assert found["attention_experts"] == []
    assert found["ffn_experts"] == ["general", "law", "general#2"]
    assert (found["layers"], found["ffn_soft_layers"]) == (2, [])
    for domain in ("general", "law"):
        assert found["domains"][domain]["attention"] is None
        ffn = found["domains"][domain]["ffn"]
        assert ffn["fraction"][0] is ffn["mean_gate"][0] is ffn["entropy"][0] is None
        assert sum(ffn["fraction"][1]) == pytest.approx(1.0)


def test_what_models_share_counts_once():
    seed = trained("seed", "data.general")
    law = trained("expert.law", "seed", "data.law", behind=1000)
    code = trained("expert.code", "seed", "data.code", behind=1000)
    assert lineage_costs([seed, law, code]) == {"lineage_tokens": 1320, "lineage_flops": 7 * 1320}
    assert lineage_costs([law, code])["lineage_tokens"] == 1320  # the seed is behind them, though no expert itself
    assert lineage_costs([seed])["lineage_tokens"] == 1000
    assert lineage_costs([law, law])["lineage_tokens"] == 1300
    assert lineage_costs([record("seed"), law])["lineage_tokens"] == 300  # a seed that was brought: nothing is known
