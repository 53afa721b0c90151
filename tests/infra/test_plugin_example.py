"""`examples/plugin`, installed by pip without a network, is found and used by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SETS = ("--set", "variants.bam.ffn.gate=sharp.squared", "--set", "evaluate.metrics=[sharp.worst_tenth]")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(ROOT / "examples" / "plugin", folder / "source")  # a build leaves files where it builds
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        *options,
        "--target",
        str(folder / "site"),
        str(folder / "source"),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder / "site"


def bam(site: Path | None, store: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT), *([str(site)] if site is not None else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "BAM_STORE": str(store)}
    program = "import sys; from pipelines.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", program, *argv], env=environment, capture_output=True, text=True)


def test_it_is_found_and_used(site: Path, tmp_path: Path) -> None:
    checks: list[dict[str, Any]] = json.loads(bam(site, tmp_path / "store", "doctor", "--json").stdout)
    [found] = [check for check in checks if check["name"].startswith("plug-ins")]
    assert found["ok"]
    assert found["name"] == "plug-ins of bam-sharp 0.1.0"
    assert found["detail"] == "routing rule sharp.squared, metric sharp.worst_tenth"

    planned = bam(site, tmp_path / "store", "plan", "quickstart", *SETS)
    assert planned.returncode == 0, planned.stderr
    assert "plug-in: routing rule sharp.squared of bam-sharp 0.1.0" in planned.stdout
    assert "plug-in: metric sharp.worst_tenth of bam-sharp 0.1.0" in planned.stdout


def test_without_it_the_recipe_is_refused(tmp_path: Path) -> None:
    refused = bam(None, tmp_path / "store", "plan", "quickstart", *SETS)
    assert refused.returncode == 2
    assert refused.stderr.count("no installed distribution has it (none is installed)") == 2


def test_its_rule_and_metric(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule against its formula, with gradients; the metric against a count by hand."""
    import numpy as np
    import torch

    from bam_core.evaluate.metric import Judged, measure
    from bam_core.evaluate.strided import Scored
    from bam_core.nn.routing import gate
    from tests.plugin_kit import visible_sites

    with visible_sites(monkeypatch) as show:
        show(site)
        logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        routing = gate("sharp.squared")(logits, 2)
        probs = logits.softmax(-1)
        wanted = probs**2 / (probs**2).sum(-1, keepdim=True)
        assert torch.allclose(routing.weights_NK, wanted.topk(2).values, atol=1e-15)
        routing.weights_NK[:, 0].sum().backward()
        assert logits.grad is not None
        assert logits.grad.abs().min() > 0
        n = np.full(20, 8)
        scored = Scored(np.arange(20), np.arange(20) * np.log(2) * 8.0, n, n)
        judged: Any = Judged(model=None, domain="law", chosen=None, scored=scored)  # type: ignore[arg-type]
        assert measure("sharp.worst_tenth", judged) == pytest.approx(18.5)
