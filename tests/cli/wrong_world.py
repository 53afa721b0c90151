"""The folder in which wrong inputs are typed: a good recipe, a small store, and files that are not what they seem."""

from __future__ import annotations

import shutil
from pathlib import Path

from bam_core.checkpoint import write_model
from infra.store import ArtifactStore
from tests.infra.model_store import file_of, fill, flip_a_byte, made
from tests.task_kit import TOKENIZER, choice, lines, tiny_model

RECIPE = """
name: small
domains:
  general: {source: {kind: text, path: texts/general.txt}}
  law: {source: {kind: text, path: texts/law.txt}}
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
STUDY = "study: {table: {title: A table, source: BAM, rows: {train.bam: {label: BAM}}}}\n"
MERGEKIT = """
base_model: org/chat
gate_mode: random
experts_per_token: 1
experts: [{source_model: org/chat}, {source_model: org/code}]
"""
TEXTS: dict[str, str] = {
    "good.yaml": RECIPE,
    "study.yaml": RECIPE + STUDY,
    "moe.yaml": MERGEKIT,
    "a-file": "a file\n",
    "folder/kept.txt": "kept\n",
    "there/config.json": "{}\n",
    "empty.yaml": "",
    "list.yaml": "- a\n- b\n",
    "list.json": "[1, 2]\n",
    "unclosed.yaml": "model: [1, 2\n",
    "broken.jinja": "{% for message in messages %}",
    "readme.md": "# Ours\n",
    "nodes.yaml": "nodes: [{name: n, count: 1, cpus: 2, memory: 8G}]\n",
    "texts/general.txt": "Some general text. " * 200,
    "texts/law.txt": "Some legal text. " * 200,
    "hf/broken/config.json": "{",
    "hf/list/config.json": "[]",
    "hf/unknown/config.json": '{"model_type": "frobnicate"}',
    "hf/bare/config.json": '{"model_type": "llama"}',
    "hf/pickled/config.json": '{"model_type": "llama"}',
    "hf/pickled/pytorch_model.bin": "no pickle is opened",
    "hf/short/config.json": '{"model_type": "llama"}',
    "hf/short/model.safetensors": "short",
}
BYTES: dict[str, bytes] = {
    "binary.yaml": bytes(range(256)),
    "latin1.yaml": "name: café\n".encode("latin-1"),
    "weights.safetensors": (8).to_bytes(8, "little") + b'{"a":{}}' + bytes(64),
    "items.jsonl": lines([choice(number) for number in range(2)]),
}


def build(folder: Path) -> None:
    """Fill an empty folder."""
    for name, text in TEXTS.items():
        write(folder / name, text.encode())
    for name, content in BYTES.items():
        write(folder / name, content)
    (folder / "loop.yaml").symlink_to("loop.yaml")
    (folder / "dangling.yaml").symlink_to("gone.yaml")
    (folder / "tokenizer.json").write_text(TOKENIZER)
    fill_stores(folder)


def write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def fill_stores(folder: Path) -> None:
    store = ArtifactStore(str(folder / "bam_store"))
    records = fill(store)
    model = tiny_model()
    tensors = [(name, tensor.float()) for name, tensor in model.state_dict().items()]

    def talks(out: Path) -> None:
        write_model(out, model.config, tensors, tokenizer=folder / "tokenizer.json", card="# a model\n")

    talking = made(store, "dense", {"data.law": records["data.law"]}, talks)
    shutil.copytree(folder / "bam_store", folder / "spoiled")
    spoiled = ArtifactStore(str(folder / "spoiled"))
    for record in (records["train.bam"], talking):
        flip_a_byte(file_of(spoiled, record, "model.safetensors"))


def snapshot(folder: Path) -> dict[str, bytes | str | None]:
    """Every file below with its bytes, every link with its aim; None for a folder."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        is_link = path.is_symlink()
        content = str(path.readlink()) if is_link else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = content
    return found
