"""An export where this project is not: a process with torch and transformers that cannot import anything of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bam_core.checkpoint import load_model
from bam_core.hf.export import export_model
from bam_core.nn.generate import generate
from tests.export_kit import ROUTED, our_logits, some_tokens, write_random

CHILD = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"bam", "bam_core", "infra", "pipelines", "tests"}:
            raise ImportError(f"{name} is not for here")

sys.meta_path.insert(0, Refuse())
sys.path[:] = [path for path in sys.path if path and not path.startswith(sys.argv[2])]
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
tokens = torch.tensor(json.loads(sys.argv[3]))
with torch.no_grad():
    logits = model(tokens).logits
new = model.generate(tokens[:1], max_new_tokens=6, do_sample=False)[0, tokens.shape[1]:]
text = pipeline("text-generation", model=model, tokenizer=tokenizer)("the court", max_new_tokens=4, do_sample=False)
ours = sorted(name for name in sys.modules if name.partition(".")[0] in {"bam", "bam_core", "infra", "pipelines"})
print(json.dumps({
    "logits": logits.tolist(), "new": new.tolist(), "text": text[0]["generated_text"], "ours": ours,
    "ids": tokenizer("the court")["input_ids"], "eos": tokenizer.eos_token_id,
}))
"""


@pytest.mark.long
def test_it_opens_where_this_project_is_not(tmp_path: Path):
    config = replace(ROUTED, vocab_size=320)
    source = write_random(tmp_path / "source", config)
    export_model(source, tmp_path / "export")
    model, tokens = load_model(source), some_tokens(config)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    root = str(Path(__file__).parents[2] / "bam_core")
    command = [sys.executable, "-I", "-c", CHILD, str(tmp_path / "export"), root, json.dumps(tokens.tolist())]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["ours"] == []
    difference = (torch.tensor(found["logits"], dtype=torch.float64) - our_logits(model, tokens)).abs().max()
    assert difference < 1e-12
    assert found["new"] == generate(model, tokens[0], 6)
    assert found["ids"][0] == found["eos"]
    assert found["text"].startswith("the court")
