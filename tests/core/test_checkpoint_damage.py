"""A model folder with a missing, truncated, wrong or foreign file: our error, and it names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from upcycle_models import write

from bam_core.checkpoint import load_model, open_tensors, read_config, read_digests
from bam_core.errors import ArtifactDamaged, InvalidInput

Damage = Callable[[Path], object]
CONFIG_DAMAGE: dict[str, Damage] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00" * 9),
    "list": lambda path: path.write_text("[1]"),
    "half an expert": lambda path: path.write_text(edited(path, attention={"n_experts": 2})),
    "experts is a number": lambda path: path.write_text(edited(path, experts=4)),
}
WRONG_CONFIG: dict[str, dict[str, Any]] = {
    "unknown field": {"d_modle": 8},
    "impossible": {"n_heads": 3},
    "another layout": {"layout_version": 99},
}
WEIGHTS_DAMAGE: dict[str, Damage] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "truncated in the header": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "garbage": lambda path: path.write_bytes(b"garbage " * 100),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "another layout": lambda path: save_file(load_file(path), path, metadata={"layout_version": "2"}),
}


def edited(path: Path, **fields: Any) -> str:
    return json.dumps(json.loads(path.read_text()) | fields)


@pytest.mark.parametrize("damage", CONFIG_DAMAGE)
def test_damaged_config_is_named(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path) / "config.json"
    CONFIG_DAMAGE[damage](path)
    with pytest.raises(ArtifactDamaged) as caught:
        load_model(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("fields", WRONG_CONFIG.values(), ids=WRONG_CONFIG)
def test_wrong_config_names_the_file_and_the_field(tmp_path: Path, fields: dict[str, Any]) -> None:
    path = write(tmp_path) / "config.json"
    path.write_text(edited(path, **fields))
    with pytest.raises(InvalidInput) as caught:
        read_config(tmp_path)
    assert str(path) in str(caught.value)
    assert [problem.path for problem in caught.value.problems] == list(fields)


@pytest.mark.parametrize("damage", WEIGHTS_DAMAGE)
@pytest.mark.parametrize("max_shard_bytes", [1500, 1_000_000])
def test_damaged_weights_are_named(tmp_path: Path, damage: str, max_shard_bytes: int) -> None:
    path = max(write(tmp_path, max_shard_bytes=max_shard_bytes).glob("*.safetensors"))
    WEIGHTS_DAMAGE[damage](path)
    with pytest.raises(ArtifactDamaged) as caught:
        load_model(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "index",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": 3}',
        '{"weight_map": {"norm.weight": 3}}',
        '{"weight_map": {"a": "../b"}}',
    ],
)
def test_damaged_index_is_named(tmp_path: Path, index: str) -> None:
    path = write(tmp_path, max_shard_bytes=1500) / "model.safetensors.index.json"
    path.write_text(index)
    with pytest.raises(ArtifactDamaged) as caught:
        open_tensors(tmp_path)
    assert str(path) in str(caught.value)


def test_index_must_agree_with_its_shards(tmp_path: Path) -> None:
    path = write(tmp_path, max_shard_bytes=1500) / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["blocks.1.ffn.w_up"]
    path.write_text(json.dumps(index))
    with pytest.raises(ArtifactDamaged, match=r"model-0000\d-of.*blocks\.1\.ffn\.w_up"):
        open_tensors(tmp_path)


def test_digests_that_are_no_table_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path) / "config.json"
    path.write_text(edited(path, bam={"tensors": ["norm.weight"]}))
    with pytest.raises(ArtifactDamaged, match=r"bam\.tensors"):
        read_digests(tmp_path)
