"""The paper's recipes say what its section 5 and Table 8 say, and give the sizes of its tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bam_core.config import TrainConfig
from bam_core.nn import paper
from bam_core.nn.costs import params_total
from pipelines import bam
from pipelines.recipe import load_recipe

DOMAINS = ["general", "code", "law", "math"]


@pytest.mark.parametrize(
    ("name", "sizes", "tokens", "learning_rates", "warmups", "floors"),
    [
        ("paper_small", paper.SMALL, (400, 100, 100), (1.2e-4, 6e-5, 1.2e-4), (1500, 1500, 1500), (0.1, 0.1, 0.1)),
        ("paper_large", paper.LARGE, (750, 100, 100), (1e-2, 5e-3, 1e-4), (2000, 2000, 1000), (0.03, 0.03, 0.1)),
    ],
)
def test_the_papers_facts(name, sizes, tokens, learning_rates, warmups, floors) -> None:
    recipe = load_recipe(name)
    assert (recipe.name, list(recipe.domains)) == (name, DOMAINS)
    assert recipe.dense_config() == sizes
    code = recipe.expert_training("code")
    phases: list[TrainConfig] = [recipe.seed_training(), code, recipe.mixture_training()]
    assert tuple(phase.tokens / 1e9 for phase in phases) == tokens
    assert tuple(phase.lr for phase in phases) == learning_rates
    assert tuple(round(phase.warmup_frac * phase.n_steps) for phase in phases) == warmups
    assert tuple(phase.min_lr_frac for phase in phases) == floors
    assert {phase.batch_tokens for phase in phases} == {{"paper_small": 1, "paper_large": 4}[name] * 2**20}
    assert {phase.weight_decay for phase in phases} == {0.1}
    assert code.shares == {"code": 0.9, "general": 0.1}
    assert phases[0].shares == {"general": 1.0}
    assert phases[2].shares == dict.fromkeys(DOMAINS, 0.25)


@pytest.mark.parametrize("name", ["paper_small", "paper_large"])
def test_the_variants_are_the_papers(name: str) -> None:
    recipe = load_recipe(name)
    models, dense = bam.model_configs(recipe), recipe.dense_config()
    expected = {
        "bam": paper.bam(dense=dense),
        "bam_shared_kv": paper.bam("shared", dense=dense),
        "btx": paper.btx(dense=dense),
        "btx_top3of6": paper.btx(6, 3, dense=dense),
    }
    if name == "paper_small":
        expected |= {f"btx{n}": paper.btx(n, dense=dense) for n in range(5, 9)}
    assert list(recipe.variants) == list(expected)
    for variant, sizes in expected.items():
        made = models[f"train.{variant}"]
        assert params_total(made) == params_total(sizes)
        assert paper.comparison(made) == paper.comparison(sizes)
        assert made.experts == tuple(DOMAINS)
    assert models["train.btx_top3of6"].expert_labels("ffn") == (
        *("general", "general#2", "general#3"),
        *("code", "law", "math"),
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its peak memory from /proc")
def test_plan_paper_small_counts_everything_in_little_memory(tmp_path: Path) -> None:
    """By its stem, from an empty folder. The weights alone would be 2.3 GB in float32."""
    # VmHWM, not ru_maxrss: that one starts at what the parent, this process, had when it forked.
    code = (
        "import sys; from pathlib import Path; from pipelines.cli import main; "
        "status = main(['plan', 'paper_small', '--json']); "
        "peak_kb = int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]); "
        "sys.exit(status or 9 * ('torch' in sys.modules) or 8 * (peak_kb > 500_000))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    models = answer["models"]
    totals = {name.partition(".")[2]: model["params_total"] for name, model in models.items() if "train." in name}
    assert models["seed"]["params_total"] == 587_209_728
    assert totals == {
        "bam": 776_002_560,
        "bam_shared_kv": 738_253_824,
        "btx": 700_480_512,
        "btx_top3of6": 775_990_272,
        "btx5": 738_235_392,
        "btx6": 775_990_272,
        "btx7": 813_745_152,
        "btx8": 851_500_032,
    }
    printed = {name: models[f"train.{name}"]["paper"]["flops_as_printed"] for name in ("bam", "btx", "btx_top3of6")}
    assert printed == {"bam": 48_257_024, "btx": 21_510_144, "btx_top3of6": 46_692_352}
    assert models["train.bam"]["paper"]["flops_per_token_and_layer"] == 48_250_880
    assert sum(part["active"] for part in models["train.bam"]["params"].values()) == 662_756_352
    named = ", ".join(warning.split(":")[0].removeprefix("variants.") for warning in answer["warnings"])
    assert sorted(named.split(", ")) == ["btx5", "btx6", "btx7", "btx8", "btx_top3of6"]
    assert list(tmp_path.iterdir()) == []
