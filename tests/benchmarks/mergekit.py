"""`python -m tests.benchmarks.mergekit`: mergekit-moe and `bam` on the same three checkpoints, side by side.

Three Llamas of random weights, as transformers writes them, and a configuration of mergekit-moe. Theirs is
`mergekit-moe CONFIG OUT`; ours is what `bam import-config CONFIG` has written, run up to the mixture, and its export to
the class that theirs is. Of each the seconds of its commands from start to end, on the clock and of the CPU, and their
peak memory; of the two mixtures whether every tensor but the routers' is the same, bit by bit, and how often a router
knows its own prompts. Then the same with models of parallel blocks (GPT-NeoX). The result is `.bench/mergekit.json`; no
figure is asserted.

mergekit is no dependency: `pip install mergekit==0.1.5`, or `--mergekit PATH` of its `mergekit-moe` in an environment
of its own. Without it our side is measured alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from bam_core.data.tokenize import END_OF_TEXT, train_bpe
from tests.benchmarks.result import OUT, write_result

SIZES = {"tiny": (64, 2, 4, 172), "30m": (512, 8, 8, 1376)}
"""Width, layers, heads, hidden width of the FFN."""
VOCABULARY, CONTEXT = 1024, 128
PROMPTS = {
    "chat": [
        "Hello, who are you and what can you do for me today?",
        "I need help with a letter to my landlord, please",
    ],
    "code": ["def add(a, b):\n    return a + b  # the sum of two numbers", "for i in range(10):\n    print(i, i * i)"],
    "law": ["The court held that the contract is void and ordered costs", "Article 5: the tenant shall pay the rent"],
}
DTYPE = "float32"
"""Of the checkpoints and of what is written: nothing is rounded, so tensors can be compared by their bits."""


@dataclass(frozen=True)
class Ran:
    """One command. cpu_s: of all cores, which other work on the machine disturbs least. peak_bytes: resident, of the
    largest of its processes."""

    status: int
    seconds: float
    cpu_s: float
    peak_bytes: int
    output: str


LAUNCH = """
import json, os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
seconds = [time.perf_counter() - began, usage.ru_utime + usage.ru_stime]
found = [os.waitstatus_to_exitcode(status), *seconds, usage.ru_maxrss * 1024]
json.dump(found, open(sys.argv[1], "w"))
"""
"""A process of its own, since the peak that a child is said to have is at least what its parent holds."""


def run(words: Sequence[str | Path], folder: Path) -> Ran:
    """A command in a folder: nothing is fetched, one thread."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    with tempfile.NamedTemporaryFile("r") as figures:
        launched = [sys.executable, "-S", "-c", LAUNCH, figures.name, *words]
        done = subprocess.run(
            launched, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True
        )
        return Ran(*json.load(figures), done.stdout.decode(errors="replace"))


def write_models(root: Path, size: str, kind: str) -> None:
    """Three checkpoints of one shape, and the configuration that mixes them."""
    import transformers

    d_model, n_layers, n_heads, d_ff = SIZES[size]
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "intermediate_size": d_ff,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if kind == "llama":
        config: Any = transformers.LlamaConfig(**common, tie_word_embeddings=False)
        model_class: Any = transformers.LlamaForCausalLM
    else:
        config, model_class = transformers.GPTNeoXConfig(**common), transformers.GPTNeoXForCausalLM
    root.mkdir(parents=True)
    (root / "tokenizer.json").write_text(train_bpe([p * 8 for own in PROMPTS.values() for p in own], VOCABULARY))
    for seed, name in enumerate(PROMPTS):
        torch.manual_seed(seed)
        model = model_class(config)
        for parameter in model.parameters():  # their own start is so small that nothing depends on the text
            if parameter.ndim > 1:
                parameter.data.normal_(0, 0.7 / parameter.shape[-1] ** 0.5)
        model.save_pretrained(root / name)
        shutil.copy(root / "tokenizer.json", root / name)
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
        (root / name / "tokenizer_config.json").write_text(json.dumps(settings))
    experts = [{"source_model": name, "positive_prompts": own} for name, own in PROMPTS.items()]
    text = {"base_model": "chat", "gate_mode": "hidden", "dtype": DTYPE, "experts": experts}
    (root / "moe.yaml").write_text(yaml.safe_dump(text, sort_keys=False))


def ours(root: Path) -> tuple[list[Ran], Path]:
    """The commands, each with a store and folders of its own; and where the export is."""
    bam = Path(sys.executable).with_name("bam")
    for old in ("store", "ours"):
        shutil.rmtree(root / old, ignore_errors=True)
    local = ["--executor", "local", "--store", "store"]
    found = [run([bam, "import-config", "moe.yaml", "-o", "moe.recipe.yaml", "--replace"], root)]
    found.append(run([bam, "run", "moe.recipe.yaml", "--until", "mix.moe", *local], root))
    found.append(run([bam, "export", "mix.moe", "ours", "--dtype", "fp32", "--store", "store"], root))
    return found, root / "ours"


def theirs(mergekit: Path, root: Path) -> tuple[Ran, Path]:
    shutil.rmtree(root / "theirs", ignore_errors=True)
    return run([mergekit, "moe.yaml", "theirs", "--device", "cpu"], root), root / "theirs"


def compared(one: Path, other: Path) -> dict[str, Any]:
    """Two folders as transformers opens them: tensors that differ, and how well each router knows its prompts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (one, other)]
    left, right = (model.state_dict() for model in models)
    differ = [name for name in left if name not in right or not torch.equal(left[name], right[name])]
    tokenizer = AutoTokenizer.from_pretrained(one)
    return {
        "classes": [type(model).__name__ for model in models],
        "tensors": len(left),
        "differ": differ,
        "only_routers_differ": left.keys() == right.keys() and all("gate.weight" in name for name in differ),
        "own_expert_first": [own_expert_first(model, tokenizer) for model in models],
    }


@torch.no_grad()
def own_expert_first(model: Any, tokenizer: Any) -> float:
    """The part of all prompts' tokens, over layers, whose best-scored expert is the one that the prompt is for."""
    hits = total = 0
    for number, prompts in enumerate(PROMPTS.values()):
        for prompt in prompts:
            ids = torch.tensor([[0, *tokenizer(prompt, add_special_tokens=False).input_ids]])
            for logits_NE in model(ids, output_router_logits=True).router_logits:
                hits += int((logits_NE[1:].argmax(-1) == number).sum())
                total += len(logits_NE) - 1
    return hits / total


def shown(ran: Ran) -> dict[str, Any]:
    last = [line for line in ran.output.splitlines() if line.strip()][-3:]
    return {
        "status": ran.status,
        "seconds": ran.seconds,
        "cpu_s": ran.cpu_s,
        "peak_bytes": ran.peak_bytes,
        "said": last,
    }


def measure(root: Path, mergekit: Path | None, rounds: int) -> dict[str, Any]:
    mine: list[list[Ran]] = []
    others: list[Ran] = []
    for _ in range(rounds):  # in turn, so that what slows the machine slows both
        done, exported = ours(root)
        mine.append(done)
        if mergekit is not None:
            ran, merged = theirs(mergekit, root)
            others.append(ran)
    found: dict[str, Any] = {
        "ours": {n: shown(r) for n, r in zip(("import-config", "run", "export"), mine[-1], strict=True)}
    }
    found["ours_seconds"] = statistics.median(sum(ran.seconds for ran in done) for done in mine)
    found["ours_cpu_s"] = statistics.median(sum(ran.cpu_s for ran in done) for done in mine)
    found["ours_peak_bytes"] = max(ran.peak_bytes for done in mine for ran in done)
    if others:
        found["theirs"] = shown(others[-1])
        found["theirs_seconds"] = statistics.median(ran.seconds for ran in others)
        found["theirs_cpu_s"] = statistics.median(ran.cpu_s for ran in others)
        found["theirs_peak_bytes"] = max(ran.peak_bytes for ran in others)
        if others[-1].status == 0 and mine[-1][-1].status == 0:
            found["compared"] = compared(merged, exported)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", type=Path, help="mergekit-moe of another environment")
    parser.add_argument("--size", choices=SIZES, default="30m")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a new folder for all that is made")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    command = given.mergekit or shutil.which("mergekit-moe")
    mergekit = Path(command).absolute() if command else None
    if mergekit is None:
        print("mergekit-moe is not installed: ours alone (pip install mergekit==0.1.5, or --mergekit PATH)")
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind in ("llama", "gpt_neox"):
            root = (given.keep or Path(scratch)) / kind
            write_models(root, given.size, kind)
            found[kind] = measure(root, mergekit, given.rounds)
            print(json.dumps({kind: found[kind]}, indent=1), flush=True)
    write_result("mergekit", {"size": given.size, "models": found}, given.out)


if __name__ == "__main__":
    main()
