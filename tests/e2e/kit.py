"""A whole pipeline that takes seconds: three domains with words of their own, models of a few thousand parameters.

The seed and the tokenizer read the general domain only, so that a change of another domain leaves both as they are.
"""

from __future__ import annotations

import copy
import io
import json
import random
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.cli import main

GENERAL, SPECIALISTS = "general", ("code", "law")
DOMAINS = (GENERAL, *SPECIALISTS)
WORDS = {
    "general": "the a river old house walks sees bright morning people under garden slowly bird street",
    "code": "def return self import class for in range lambda yield assert raise None True print",
    "law": "hereby licensee shall warranty liable herein pursuant damages notice grant party clause waive",
    "math": "sum seven plus equals times minus root proof square integer prime divide zero nine",
}
STAGES = (
    "tokenizer",
    *(f"data.{domain}" for domain in DOMAINS),
    "overlap",
    "seed",
    *(f"expert.{domain}" for domain in SPECIALISTS),
    "mix.bam",
    "train.bam",
    "mix.btx",
    "train.btx",
    "dense",
    "evaluate",
    "routing",
    "report",
)
MODELS = ("seed", "expert.code", "expert.law", "mix.bam", "train.bam", "mix.btx", "train.btx", "dense")
NO_MLFLOW = ("--tracking-uri", "http://127.0.0.1:9")
"""The discard port, where nothing listens: most tests are not about MLflow, and this is its quickest answer."""


def lines_of(domain: str, n_lines: int = 240, salt: int = 0) -> list[str]:
    """Sentences in the domain's own words, in an order that a model can learn something of."""
    words, chance = WORDS[domain].split(), random.Random(f"{domain} {salt}")
    sentences = []
    for _ in range(n_lines):
        start = chance.randrange(len(words))
        walk = (words[(start + step * chance.choice((1, 1, 1, 2))) % len(words)] for step in range(12))
        sentences.append(" ".join(walk) + ".")
    return sentences


def write_texts(folder: Path, domains: tuple[str, ...] = DOMAINS) -> None:
    """`general` as one file of plain text, every other domain as lines of JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for domain in domains:
        lines = lines_of(domain)
        if domain == GENERAL:
            (folder / f"{domain}.txt").write_text("\n".join(lines) + "\n")
        else:
            write_jsonl(folder / f"{domain}.jsonl", lines)


def write_jsonl(path: Path, lines: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))


def recipe_dict(texts: Path) -> dict[str, Any]:
    phase = {"batch_tokens": 256, "lr": 3e-3}
    return {
        "name": "tiny",
        "seed": 0,
        "domains": {
            GENERAL: {"source": {"kind": "text", "path": str(texts / "general.txt")}, "valid_frac": 0.1},
            **{
                domain: {"source": {"kind": "jsonl", "path": str(texts / f"{domain}.jsonl")}, "valid_frac": 0.1}
                for domain in SPECIALISTS
            },
        },
        "tokenizer": {"kind": "bpe", "vocab_size": 300, "domains": [GENERAL]},
        "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 24, "max_seq_len": 32},
        "phases": {
            "seed": phase | {"tokens": 20 * 256, "data": {GENERAL: 1.0}},
            "expert": phase | {"tokens": 20 * 256, "data": {"own": 0.9, GENERAL: 0.1}},
            "mixture": phase | {"tokens": 12 * 256, "data": "uniform"},
        },
        "variants": {
            "bam": {"attention": {"routing": "soft", "kv": "expert"}, "ffn": {"top_k": 1}},
            "btx": {"attention": "merged", "ffn": {"top_k": 1}},
        },
        "evaluate": {"tokens": 2000},
        "runtime": {"checkpoint_steps": 5},
    }


def write_recipe(path: Path, recipe: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(recipe), sort_keys=False))
    return path


def merged(recipe: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with `changes` laid over it, group by group; a group under `None` is taken out."""
    result = copy.deepcopy(dict(recipe))
    for name, value in changes.items():
        if value is None:
            del result[name]
        elif isinstance(value, Mapping) and isinstance(result.get(name), Mapping):
            result[name] = merged(result[name], value)
        else:
            result[name] = copy.deepcopy(value)
    return result


@dataclass(frozen=True)
class Answer:
    """What a command line gave. out, err: standard output and standard error."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def stages(self) -> dict[str, dict[str, Any]]:
        """Stage -> its entry in the `--json` of `bam run`, `bam stage` or `bam plan`."""
        return {stage["stage"]: stage for stage in self.json["stages"]}

    def actions(self) -> dict[str, str]:
        return {name: stage["action"] for name, stage in self.stages().items()}


@dataclass(frozen=True)
class Place:
    """A recipe and a store of its own, and `bam` on both with the local executor."""

    recipe: Path
    store: Path

    def bam(self, *words: str, tracking: tuple[str, ...] = NO_MLFLOW, executor: str = "local") -> Answer:
        """Run `bam` in this process, by the function that the script calls."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = main(list(self.words(*words, tracking=tracking, executor=executor)))
        return Answer(status, out.getvalue(), err.getvalue())

    def words(self, *words: str, tracking: tuple[str, ...] = NO_MLFLOW, executor: str = "local") -> tuple[str, ...]:
        return (*words, "--store", str(self.store), *tracking, "--executor", executor)

    def run(self, *options: str, **settings: Any) -> Answer:
        return self.bam("run", str(self.recipe), *options, "--json", **settings)

    def plan(self, *options: str, **settings: Any) -> Answer:
        return self.bam("plan", str(self.recipe), *options, "--json", **settings)

    def set_recipe(self, recipe: Mapping[str, Any]) -> None:
        write_recipe(self.recipe, recipe)

    def recipe_dict(self) -> dict[str, Any]:
        return yaml.safe_load(self.recipe.read_text())

    def artifact(self, stage: str) -> Path:
        """The folder of the stage's only artifact."""
        [folder] = self.artifacts(stage)
        return folder

    def artifacts(self, stage: str) -> list[Path]:
        return sorted((self.store / "artifacts" / stage).glob("*"))

    def record(self, stage: str) -> dict[str, Any]:
        return json.loads((self.artifact(stage) / "record.json").read_text())

    def is_done(self, stage: str) -> bool:
        return any((folder / "record.json").is_file() for folder in self.artifacts(stage))

    def attempts(self) -> dict[str, int]:
        """Stage -> how often somebody has begun to make it, under any key: what was really executed."""
        return {stage: sum(1 for _ in self.store.glob(f"artifacts/{stage}/*/attempts/*")) for stage in STAGES}

    def perplexity(self) -> bytes:
        return (self.artifact("evaluate") / "perplexity.json").read_bytes()


def executed(before: Mapping[str, int], after: Mapping[str, int]) -> set[str]:
    """Stages that were begun between two looks at `Place.attempts`."""
    return {stage for stage in after if after[stage] != before.get(stage, 0)}
