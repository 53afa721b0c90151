"""Wrong recipes and command lines: exit 2, words that help, no traceback, nothing written - not even a store.

One table; the real composition behind it, since "nothing written" is about all of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

GOOD = """
name: small
domains:
  general: {source: {kind: text, path: TEXTS/general.txt}}
  law: {source: {kind: text, path: TEXTS/law.txt}}
tokenizer: {kind: bpe, vocab_size: 300}
model: {d_model: 16, n_layers: 1, n_heads: 2, n_kv_heads: 2, d_ff: 24, max_seq_len: 32}
phases:
  seed: {tokens: 640, batch_tokens: 64, lr: 1e-3, data: {general: 0.5, law: 0.5}}
  expert: {tokens: 640, batch_tokens: 64, lr: 1e-3, data: {own: 0.9, general: 0.1}}
  mixture: {tokens: 640, batch_tokens: 64, lr: 1e-3}
variants:
  bam: {attention: {routing: soft, kv: expert}, ffn: {top_k: 1}}
evaluate: {tokens: 320}
"""

LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))

FILES: dict[str, tuple[str | bytes, str]] = {
    "unparsable": ("model: [1, 2", "is not YAML"),
    "empty": ("", "is empty"),
    "comments only": ("# nothing\n", "is empty"),
    "binary": (bytes(range(256)), "not UTF-8"),
    "control characters": ("name: \x07", "special characters"),
    "a list": ("- name: x\n", "must be a mapping"),
    "a scalar": ("quickstart\n", "must be a mapping"),
    "two documents": ("name: x\n---\nname: y\n", "another document"),
    "a tag that runs code": ("name: !!python/object/apply:os.mkdir [bam_store]\n", "tags are not allowed"),
    "a key twice": (GOOD + "name: again\n", "given twice"),
    "billion laughs": (LAUGHS, "more than"),
    "a value in itself": ("name: &n [*n]\n", "contains itself"),
    "very deep": ("name: " + "[" * 300_000, "nested too deeply"),
    "a key that is no text": (GOOD + "3: x\n", "quotes"),
}
"""What: (the file, words that must be in the answer)."""

SETS: dict[str, tuple[str, str]] = {
    "unknown top key": ("modle.d_model=1", "did you mean 'model'?"),
    "misspelt nested key": ("model.d_modl=1", "did you mean 'd_model'?"),
    "wrong type": ("model.d_model=wide", "whole number"),
    "truth value as a number": ("model.n_layers=true", "whole number"),
    "zero size": ("model.d_ff=0", "at least 1"),
    "negative size": ("model.d_ff=-8", "at least 1"),
    "a number beyond all bounds": (f"model.d_ff={10**40}", "at most"),
    "heads that do not divide": ("model.n_heads=3", "must divide d_model, 16"),
    "odd head size": ("model.n_heads=16", "even number"),
    "key heads that do not divide": ("model.n_kv_heads=4", "must divide n_heads, 2"),
    "learning rate that is no number": ("phases.seed.lr=.nan", "positive number"),
    "endless learning rate": ("phases.seed.lr=.inf", "positive number"),
    "negative tokens": ("phases.seed.tokens=-1", "at least 1"),
    "less than a batch": ("phases.seed.tokens=32", "at least one batch, 64"),
    "batch that is no multiple": ("phases.seed.batch_tokens=50", "multiple of the sequence length, 32"),
    "shares that do not sum": ("phases.seed.data={general: 0.5}", "sum to 0.5"),
    "negative share": ("phases.seed.data={general: 1.5, law: -0.5}", "0 or more"),
    "share of nobody": ("phases.seed.data={general: 0.5, lwa: 0.5}", "did you mean 'law'?"),
    "own outside the experts": ("phases.mixture.data={own: 1}", "only phases.expert"),
    "no domain": ("domains={}", "at least two"),
    "one domain": ("domains={general: {source: {kind: python-docs}}}", "at least two"),
    "a domain that climbs out": (
        "domains={a: {source: {kind: python-docs}}, ../b: {source: {kind: python-docs}}}",
        "a-z",
    ),
    "a reserved domain": ("domains.own={source: {kind: python-docs}}", "another name"),
    "unknown source": ("domains.law.source.kind=txt", "did you mean 'text'?"),
    "source without a path": (
        "domains.law.source={kind: jsonl}",
        "domains.law.source.path: is missing",
    ),
    "file that is not there": ("domains.law.source.path=nowhere.txt", "domains.law.source.path"),
    "small vocabulary": ("tokenizer.vocab_size=256", "at least 257"),
    "more chosen than there are": ("variants.bam.ffn.top_k=3", "at most the number of experts, 2"),
    "none chosen": ("variants.bam.ffn.top_k=0", "at least 1"),
    "unknown attention": ("variants.bam.attention=merge", "did you mean 'merged'?"),
    "unknown gate": ("variants.bam.ffn.gate=softmax_topp", "did you mean 'softmax_topk'?"),
    "unknown merge of keys": ("variants.bam.attention.kv=none", "expert, shared, value_only"),
    "a task file that is not there": ("evaluate.tasks=[nowhere.jsonl]", "evaluate.tasks.0.path"),
    "a limit of no items": ("evaluate.tasks=[{path: a.jsonl, limit: 0}]", "evaluate.tasks.0.limit"),
    "no worker": ("runtime.expert.workers=0", "at least 1"),
    "set without =": ("model.d_ff", "must read key.path=value"),
    "set without a key": ("=3", "must read key.path=value"),
    "set below a value": ("name.x=3", "has no keys"),
    "set to no YAML": ("model.d_ff=[", "is not YAML"),
    "set with a tag": ("name=!!python/name:os.system", "tags are not allowed"),
}
"""What: (the override of a good recipe, words that must be in the answer)."""

LINES: dict[str, tuple[list[str], str]] = {
    "no recipe": (["run"], "Missing argument 'RECIPE'"),
    "unknown recipe": (["run", "quikstart"], "did you mean 'quickstart'?"),
    "missing file": (["run", "nowhere/small.yaml"], "no such file"),
    "a folder": (["run", "TEXTS"], "is a folder"),
    "a device": (["run", "/dev/zero"], "not a regular file"),
    "unknown command": (["rnu", "RECIPE"], "did you mean 'run'?"),
    "unknown option": (["run", "RECIPE", "--dryrun"], "No such option"),
    "option without a value": (["run", "RECIPE", "--only"], "requires an argument"),
    "one argument too many": (["plan", "RECIPE", "RECIPE"], "unexpected extra argument"),
    "unknown --only": (["run", "RECIPE", "--only", "expert.lwa"], "did you mean 'expert.law'?"),
    "glob that matches nothing": (["run", "RECIPE", "--only", "tune.*"], "--only tune.*"),
    "unknown --from": (["plan", "RECIPE", "--from", "sed"], "did you mean 'seed'?"),
    "unknown --until": (["plan", "RECIPE", "--until", "train.bma"], "did you mean 'train.bam'?"),
    "unknown --force": (["plan", "RECIPE", "--force", "expert.general"], "--force expert.general"),
    "empty selection": (["run", "RECIPE", "--only", "seed", "--from", "train.bam"], "intersect to nothing"),
    "negative --max-parallel": (["run", "RECIPE", "--max-parallel", "-2"], "max-parallel"),
    "zero --max-parallel": (["run", "RECIPE", "--max-parallel", "0"], "max-parallel"),
    "unknown executor": (["run", "RECIPE", "--executor", "slurm"], "executor"),
    "unknown stage": (["stage", "expert.lwa", "RECIPE"], "did you mean 'expert.law'?"),
    "stage without its inputs": (["stage", "expert.law", "RECIPE"], "--with-deps"),
    "input without =": (["stage", "expert.law", "RECIPE", "--input", "seed"], "must read role=REF"),
    "input twice": (["stage", "seed", "RECIPE", "--input", "a=b", "--input", "a=c"], "filled twice"),
    "unknown role": (["stage", "expert.law", "RECIPE", "--input", "sede=seed"], "did you mean 'seed'?"),
    "input that is not there": (
        ["stage", "expert.law", "RECIPE", "--input", "seed=seed@latest"],
        "no artifact",
    ),
    "unknown reference": (["show", "expert.law"], "names no artifact"),
    "bad reference": (["tree", "@@"], "names no artifact"),
    "nothing to get": (["get", "evaluate:perplexity.json"], "names no artifact"),
    "nothing to verify": (["verify", "seed@00"], "names no artifact"),
    "nothing to generate with": (["generate", "train.bam", "hello"], "names no artifact"),
    "no new tokens": (["generate", "train.bam", "hello", "--max-new-tokens", "0"], "max-new-tokens"),
    "endless temperature": (["generate", "train.bam", "hello", "--temperature", "inf"], "finite"),
    "empty nucleus": (["generate", "train.bam", "hello", "--top-p", "0"], "top-p"),
    "nucleus of no size": (["generate", "train.bam", "hello", "--top-p", "nan"], "'nan' is not a finite number"),
    "no lineage": (["lineage", "train.bam"], "names no artifact"),
    "unknown format": (["lineage", "train.bam", "--format", "xml"], "'xml' is not one of"),
    "port out of range": (["ui", "--port", "70000"], "port"),
    "store is a file": (["run", "RECIPE", "--store", "TEXTS/law.txt"], "law.txt"),
    "store below a file": (["run", "RECIPE", "--store", "TEXTS/law.txt/store"], "law.txt"),
    "store that cannot be made": (["run", "RECIPE", "--store", "/proc/bam_store"], "/proc/bam_store"),
    "store of no known kind": (["run", "RECIPE", "--store", "gopher://host/x"], "gopher"),
    "listing a store that is a file": (["ls", "--store", "TEXTS/law.txt"], "law.txt"),
}
"""What: (the command line, words that must be in the answer)."""


@pytest.fixture
def texts(tmp_path):
    """A folder beside the current one with a text for each domain and a good recipe."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("general", "law"):
        (folder / f"{name}.txt").write_text(f"Some {name} text. " * 50)
    (folder / "small.yaml").write_text(GOOD.replace("TEXTS", str(folder)))
    return folder


def assert_refused(ended, words, *untouched):
    assert ended.status == 2, ended
    assert words in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert [(folder, files) for folder, files in untouched if snapshot(folder) != files] == []


def snapshot(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_is_no_recipe(what, bam, here, texts):
    content, words = FILES[what]
    path = texts / "spoiled.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.replace("TEXTS", str(texts)).encode())
    before = snapshot(texts)
    assert_refused(bam("run", str(path), "--json"), words, (here, {}), (texts, before))


@pytest.mark.parametrize("what", SETS)
def test_a_recipe_that_cannot_be_meant(what, bam, here, texts):
    override, words = SETS[what]
    before = snapshot(texts)
    ended = bam("run", str(texts / "small.yaml"), "--set", override)
    assert_refused(ended, words, (here, {}), (texts, before))


@pytest.mark.parametrize("what", LINES)
def test_a_command_line_that_cannot_be_meant(what, bam, here, texts):
    line, words = LINES[what]
    before = snapshot(texts)
    argv = [word.replace("RECIPE", str(texts / "small.yaml")).replace("TEXTS", str(texts)) for word in line]
    assert_refused(bam(*argv), words, (here, {}), (texts, before))


def test_the_good_recipe_is_good(bam, here, texts):
    """Or the tables above would prove nothing."""
    ended = bam("plan", str(texts / "small.yaml"))
    assert (ended.status, ended.err) == (0, "")
    assert snapshot(here) == {}


def test_every_error_of_a_recipe_is_told_at_once(bam, texts):
    sets = [
        "model.d_modl=1",
        "model.n_heads=3",
        "phases.seed.lr=.nan",
        "variants.bam.ffn.top_k=9",
        "nmae=x",
        "b",
    ]
    ended = bam("plan", str(texts / "small.yaml"), *(word for item in sets for word in ("--set", item)))
    assert ended.status == 2
    for line in (
        "model.d_modl: 1: is not a known key (did you mean 'd_model'?)",
        "model.n_heads: 3: must divide d_model, 16",
        "phases.seed.lr: nan: must be a positive number",
        "variants.bam.ffn.top_k: 9: must be at most the number of experts, 2",
        "nmae: 'x': is not a known key (did you mean 'name'?)",
        "--set: 'b': must read key.path=value",
    ):
        assert line in ended.err


@pytest.mark.parametrize(
    "argv",
    [
        ["run", "quikstart"],
        ["run", "quickstart", "--set", "model.n_heads=3"],
        ["frobnicate"],
        ["ls", "--store", "/dev/null"],
    ],
)
def test_as_a_process_of_its_own(argv, tmp_path):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    code = "import sys; from pipelines.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
