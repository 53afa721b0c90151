"""The `mix` stage: what it writes, and that its memory is bounded by the largest tensor, not by the model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bam_core.checkpoint import load_model, read_config, write_model
from bam_core.config import ModelConfig, SharedExperts
from bam_core.data.packing import Rows
from bam_core.data.shards import write_shards
from bam_core.graph.record import Record
from bam_core.graph.stage import Resources
from bam_core.nn.costs import MIXING_OVERHEAD_BYTES, mixing_bytes
from bam_core.nn.lm import init_tensor
from bam_core.nn.shapes import tensor_shapes
from bam_core.protocols import StageContext
from bam_core.upcycle.variants import AttentionSpec, FFNSpec, MergeSpec, Variant
from pipelines.stages import mix

NAMES = ("general", "code", "law")
TINY = ModelConfig(vocab_size=30, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=12, max_seq_len=8)
VARIANT = Variant("bam", AttentionSpec(), FFNSpec(scale="gate"), router_init="ridge")
ROUTED = replace(VARIANT, shared=SharedExperts())

LARGE_FFN = ModelConfig(vocab_size=64, d_model=256, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=24_576, max_seq_len=8)
"""25 MB for each matrix of an FFN; 230 MB for a layer's FFN experts, 460 MB for the mixture."""

LARGE_VOCABULARY = ModelConfig(60_000, 256, 2, n_heads=2, n_kv_heads=1, d_ff=256, max_seq_len=8, tie_embeddings=False)
"""61 MB for each embedding, merged from three."""

SLACK_BYTES = 150_000_000
"""Beside the tensors: activations, a shard that fills, what torch loads late. Half of what `mixing_bytes` allows, and
less than a layer's experts."""


def prepare(root: Path, config: ModelConfig, variant: Variant, names: tuple[str, ...] = NAMES) -> StageContext:
    """A stage's context as the runner makes it, over dense models and data that are written here."""
    for index, name in enumerate(names):
        write_model(root / f"expert.{name}", config, tensors(config, index), tokenizer=None, card="")
        (root / f"expert.{name}" / "tokenizer.json").write_text("{}")
        draws = np.random.default_rng(index)
        tokens = draws.integers(10 * index, 10 * index + 10, (12, config.max_seq_len + 1), dtype=np.uint16)
        write_shards(root / f"data.{name}" / "train", [Rows(tokens, np.full(12, 9, np.int64))])
    return context(root, variant, names)


def tensors(config: ModelConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    for name, shape in tensor_shapes(config).items():
        yield name, init_tensor(name, shape, config.n_layers, seed)


def made(stage: str, key: str, metrics: dict[str, Any]) -> Record:
    return Record(stage, key, {}, {}, (), "", metrics, {}, 0.0, 0.0, 1)


def context(root: Path, variant: Variant, names: tuple[str, ...] = NAMES) -> StageContext:
    record = made("expert.x", "0" * 64, {"train_tokens": 5, "train_flops": 70})
    data = made("data.x", "1" * 64, {"train_tokens": 1_000_000})
    roles = [f"expert.{name}" for name in names]
    unused: Any = None
    return StageContext(
        stage="mix.bam",
        key="2" * 64,
        config={
            "variant": variant.identity(),
            "experts": [[name, f"expert.{name}"] for name in names],
            "seed": 3,
            "domains": list(names),
            "calibration_tokens": 32,
        },
        runtime={},
        resources=Resources(),
        inputs={role: root / role for role in [*roles, *(f"data.{name}" for name in names)]},
        records={**dict.fromkeys(roles, record), **{f"data.{name}": data for name in names}},
        out=root / "mix",
        trainer=unused,
        sources=unused,
        history=lambda: [],
    )


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_stage_writes_the_calibrated_mixture_and_what_holds_of_it(tmp_path: Path, threads: None) -> None:
    logged: list[Any] = []
    given = prepare(tmp_path, TINY, VARIANT)
    metrics = mix.run(StageContext(**{**vars(given), "log": lambda step, figures: logged.append(figures)}))
    found = json.loads((tmp_path / "mix" / "mix.json").read_text())
    assert list(found) == ["variant", "experts", "tensors", "receipt"]
    assert found["experts"] == {name: f"expert.{name}" for name in NAMES}
    assert Variant.from_json(found["variant"]) == VARIANT
    step0 = found["receipt"]["step0"]
    assert step0["tokens_per_domain"] == dict.fromkeys(NAMES, 32)
    assert all(layer["ffn_accuracy"] > 0.5 for layer in step0["layers"])
    config = read_config(tmp_path / "mix")
    assert config.ffn is not None
    sums = [layer["ffn_gate_sum"] for layer in step0["layers"]]
    assert config.ffn.gain == pytest.approx([1 / total for total in sums])
    assert set(load_model(tmp_path / "mix").state_dict()) == set(found["tensors"])
    assert found["tensors"]["blocks.0.ffn.router"]["init"] == "ridge"
    assert metrics["worst_expert_difference"] < 1e-12
    assert metrics["step0_perplexity"] == step0["perplexity"]["mixture"]["average"]
    assert (metrics["lineage_tokens"], metrics["lineage_flops"]) == (15, 210), "of models, not of data"
    assert logged == [{"memory_estimate_bytes": mixing_bytes(config)}]


def test_stage_reads_the_models_of_the_variant_alone(tmp_path: Path, threads: None) -> None:
    """Sparse upcycling of the seed: copies of one model, measured on every domain."""
    copies = Variant("sparse", "merged", FFNSpec(experts=("general",) * 2), merge=MergeSpec("seed"))
    prepare(tmp_path, TINY, copies)
    mix.run(context(tmp_path, copies))
    found = json.loads((tmp_path / "mix" / "mix.json").read_text())
    assert found["experts"] == {"general": "expert.general"}
    step0 = found["receipt"]["step0"]
    assert set(step0["perplexity"]) == {"general", "mixture"}
    assert set(step0["perplexity"]["mixture"]) == {*NAMES, "average"}
    assert any("copies" in warning for warning in step0["warnings"]), "those of the variant are there too"


def test_equal_runs_give_equal_bytes(tmp_path: Path, threads: None) -> None:
    prepare(tmp_path, TINY, VARIANT)
    written = []
    for _ in range(2):
        mix.run(context(tmp_path, VARIANT))
        written.append({path.name: path.read_bytes() for path in (tmp_path / "mix").iterdir()})
    assert written[0] == written[1]


CHILD = """
import sys
from pathlib import Path
from tests.core import test_mix_memory as here

def kilobytes(field):
    status = Path("/proc/self/status").read_text()
    return int(status.split(field + ":")[1].split()[0])

before = kilobytes("VmRSS")
here.mix.run(here.context(Path(sys.argv[1]), getattr(here, sys.argv[2])))
print(1024 * (kilobytes("VmHWM") - before))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("config", "variant"),
    [(LARGE_FFN, "VARIANT"), (LARGE_VOCABULARY, "VARIANT"), (LARGE_VOCABULARY, "ROUTED")],
    ids=["ffn", "vocabulary", "vocabulary of every model"],
)
def test_memory_is_that_of_a_few_tensors(tmp_path: Path, config: ModelConfig, variant: str) -> None:
    """All of it: calibration, writing, receipt; peak resident memory of a process, mapped files included."""
    prepare(tmp_path, config, VARIANT)
    command = [sys.executable, "-c", CHILD, str(tmp_path), variant]
    child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert child.returncode == 0, child.stderr
    bound = mixing_bytes(read_config(tmp_path / "mix")) - MIXING_OVERHEAD_BYTES + SLACK_BYTES
    assert int(child.stdout) < bound, f"{int(child.stdout):,} bytes, and the bound is {bound:,}"
