"""The stage `routing` on tiny models and rows: its three files, and that they are functions of its inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from bam_core.checkpoint import load_model, write_model
from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.data.packing import Rows
from bam_core.data.shards import ShardedRows, write_shards
from bam_core.evaluate import information
from bam_core.evaluate.knock_out import masked, score_rows
from bam_core.graph.stage import Resources
from bam_core.nn.lm import LM, init_weights
from pipelines.stages.routing import run

DENSE = ModelConfig(vocab_size=23, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=12, max_seq_len=8)
NAMES = ("general", "law")
MODELS = {
    "train.bam": replace(DENSE, attention=AttentionExperts(2, 2), ffn=FFNExperts(2, 1), experts=NAMES),
    "train.btx": replace(DENSE, ffn=FFNExperts(3, 2, slots=("general", "general", "law")), experts=NAMES),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    for domain in NAMES:
        rows = Rows(rng.integers(23, size=(9, 9)).astype(np.uint16), rng.integers(8, 20, size=9).astype(np.int32))
        write_shards(folder / f"data.{domain}" / "valid", [rows])
    for number, (name, config) in enumerate(MODELS.items()):
        model = LM(config)
        init_weights(model, number)
        model.embed.weight.data *= 30  # so that routers choose
        write_model(folder / name, config, model.state_dict().items(), tokenizer=None, card="")
    return {path.name: path for path in folder.iterdir()}


def routed(inputs: Mapping[str, Path], out: Path, **config: Any) -> dict[str, Any]:
    out.mkdir()
    asked = {"models": list(MODELS), "domains": list(NAMES), "tokens": 30, "knock_out_tokens": 24, "dtype": "fp64"}
    context: Any = SimpleNamespace(
        config=asked | config, inputs=inputs, out=out, resources=Resources(), log=lambda step, metrics: None
    )
    return dict(run(context))


def read(out: Path, name: str) -> dict[str, Any]:
    return json.loads((out / name).read_text())["models"]


def test_the_table_has_every_sampled_token_and_the_summary_its_figures(inputs: dict[str, Path], tmp_path: Path) -> None:
    metrics = routed(inputs, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "routing.parquet").to_pylist()
    assert len(rows) == metrics["n_rows"] == 2 * 24 * (4 + 2)  # rows for at most 30 tokens: 3 of 8
    summary = read(tmp_path / "out", "routing_summary.json")
    assert list(summary) == list(MODELS)
    for model, config in MODELS.items():
        assert summary[model]["tokens"] == dict.fromkeys(NAMES, 24)
        for branch in ("attention", "ffn"):
            for layer, figures in enumerate(summary[model][branch] or ()):
                here = [r for r in rows if (r["model"], r["branch"], r["layer"]) == (model, branch, layer)]
                labels = config.expert_labels(branch)
                met = [[sum((r["domain"], r["expert"]) == (d, e) for r in here) for e in labels] for d in NAMES]
                assert np.array_equal([figures["first"][domain] for domain in NAMES], met)
                assert figures["mutual_information"] == pytest.approx(information.mutual_information(met))
    assert set(metrics) == {"n_rows"} | {
        f"mutual_information_frac.{router}" for router in ("attention.train.bam", "ffn.train.bam", "ffn.train.btx")
    }


def test_each_cell_is_the_masked_model_on_the_scored_rows(inputs: dict[str, Path], tmp_path: Path) -> None:
    routed(inputs, tmp_path / "out")
    found = read(tmp_path / "out", "knock_out.json")["train.btx"]
    assert found["experts"] == {"attention": [], "ffn": ["general", "general#2", "law"], "both": ["general", "law"]}
    model = load_model(inputs["train.btx"], dtype=torch.float64)
    for domain in NAMES:
        rows = ShardedRows(inputs[f"data.{domain}"] / "valid")
        for place, label in enumerate(found["experts"]["ffn"]):
            with masked(model, "ffn", (place,)):
                score = score_rows(model, rows, np.array([0, 3, 6]))  # 24 tokens, spread over nine rows
            assert found["ffn"][label][domain]["nll"] == score.nll


def test_equal_inputs_give_equal_bytes_and_no_knock_out_changes_no_other_file(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    routed(inputs, tmp_path / "one")
    routed(inputs, tmp_path / "two")
    routed(inputs, tmp_path / "none", knock_out_tokens=0)
    for name in ("routing.parquet", "routing_summary.json", "knock_out.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert read(tmp_path / "none", "knock_out.json") == {}
    assert (tmp_path / "none" / "routing.parquet").read_bytes() == (tmp_path / "one" / "routing.parquet").read_bytes()
