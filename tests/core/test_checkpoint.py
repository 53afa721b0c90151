"""Model folders: what goes in comes out to the last bit, equal models give equal bytes."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from upcycle_models import DENSE, NAMES, random_tensors, write

from bam_core.checkpoint import load_model, open_tensors, read_config, read_digests, tensor_sha256
from bam_core.config import AttentionExperts, FFNExperts, ModelConfig
from bam_core.errors import InvalidInput
from bam_core.nn.costs import params_total
from bam_core.nn.lm import LM, init_weights
from bam_core.nn.shapes import tensor_shapes

MIXTURE = replace(DENSE, attention=AttentionExperts(4, 4), ffn=FFNExperts(4), experts=NAMES)
SHARED_KV = replace(MIXTURE, attention=AttentionExperts(4, 2, kv="shared"))
BTX = replace(MIXTURE, attention=None)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- the layout


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("residual", ["parallel", "sequential"])
@pytest.mark.parametrize("config", [DENSE, MIXTURE, SHARED_KV, BTX])
def test_layout_is_that_of_the_model(config: ModelConfig, residual: Any, tie_embeddings: bool) -> None:
    config = replace(config, residual=residual, tie_embeddings=tie_embeddings)
    state = {name: tuple(tensor.shape) for name, tensor in LM(config).state_dict().items()}
    assert state == tensor_shapes(config)


def test_layout_has_the_papers_parameter_counts() -> None:
    """BAM, Table 9, "Total" (its d_ff is the fused width, twice ours)."""
    dense = ModelConfig(256_000, 1024, 6, 8, 8, 2048, 2048, tie_embeddings=False)
    bam = replace(dense, attention=AttentionExperts(4, 4), ffn=FFNExperts(4), experts=NAMES)
    shared_kv = replace(bam, attention=AttentionExperts(4, 4, kv="shared"))
    totals = {config: params_total(config) for config in (dense, bam, shared_kv, replace(bam, attention=None))}
    assert list(totals.values()) == [587_209_728, 776_002_560, 738_253_824, 700_480_512]
    for config, total in totals.items():
        assert sum(torch.Size(shape).numel() for shape in tensor_shapes(config).values()) == total


# --- round trips


@pytest.mark.parametrize("max_shard_bytes", [1, 700, 1_000_000])
def test_round_trip_is_exact(tmp_path: Path, max_shard_bytes: int) -> None:
    tokenizer = tmp_path / "its-tokenizer.json"
    tokenizer.write_text('{"a": 1}')
    folder = write(tmp_path / "model", tokenizer=tokenizer, card="# é\n", max_shard_bytes=max_shard_bytes)

    source = open_tensors(folder)
    expected = dict(random_tensors(DENSE))
    assert source.names() == sorted(expected)
    for name, tensor in expected.items():
        assert source.shape(name) == tuple(tensor.shape)
        assert torch.equal(source.get(name), tensor)
    assert read_config(folder) == DENSE
    assert (folder / "tokenizer.json").read_text() == '{"a": 1}'
    assert (folder / "MODEL_CARD.md").read_text(encoding="utf-8") == "# é\n"


def test_mixture_config_round_trips_beside_its_provenance(tmp_path: Path) -> None:
    folder = write(tmp_path, SHARED_KV, provenance={"stage": "mix.bam", "key": "0f"})
    assert read_config(folder) == SHARED_KV
    made_by = json.loads((folder / "config.json").read_text())["bam"]
    assert {name: made_by[name] for name in ("stage", "key")} == {"stage": "mix.bam", "key": "0f"}


def test_shards_hold_no_more_than_asked_and_are_indexed(tmp_path: Path) -> None:
    limit = 1500
    folder = write(tmp_path, max_shard_bytes=limit)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}

    assert len(shards) > 2
    assert next(iter(shards)) == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all(sum(tensor.nbytes for tensor in shard.values()) <= limit for shard in shards.values())
    assert index["weight_map"] == {name: file for file, shard in shards.items() for name in shard}
    assert index["metadata"]["total_size"] == 4 * params_total(DENSE)


@pytest.mark.parametrize("max_shard_bytes", [700, 1_000_000])
def test_equal_models_give_equal_bytes(tmp_path: Path, max_shard_bytes: int) -> None:
    folders = [write(tmp_path / str(run), MIXTURE, max_shard_bytes=max_shard_bytes) for run in range(3)]
    assert files(folders[0]) == files(folders[1]) == files(folders[2])


def test_order_of_tensors_leaves_the_bytes_alone(tmp_path: Path) -> None:
    backwards = reversed(list(random_tensors(DENSE)))
    assert files(write(tmp_path / "a")) == files(write(tmp_path / "b", tensors=backwards))


def test_metadata_carries_the_layout_version_only(tmp_path: Path) -> None:
    """Two entries would be written in a random order, and equal models would differ."""
    raw = (write(tmp_path) / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["__metadata__"] == {"layout_version": "1"}


def test_writing_again_replaces_shards_by_one_file(tmp_path: Path) -> None:
    write(tmp_path, max_shard_bytes=700)
    write(tmp_path, tensors=random_tensors(DENSE, seed=1))
    assert set(files(tmp_path)) == {"config.json", "model.safetensors", "MODEL_CARD.md"}
    assert torch.equal(open_tensors(tmp_path).get("norm.weight"), dict(random_tensors(DENSE, 1))["norm.weight"])


def test_views_of_one_buffer_are_written(tmp_path: Path) -> None:
    """As an optimizer keeps its master weights."""
    buffer = torch.randn(params_total(DENSE))
    sizes = {name: torch.Size(shape) for name, shape in tensor_shapes(DENSE).items()}
    pieces = buffer.split([size.numel() for size in sizes.values()])
    views = {name: piece.view(size) for (name, size), piece in zip(sizes.items(), pieces, strict=True)}
    source = open_tensors(write(tmp_path, tensors=views.items()))
    assert all(torch.equal(source.get(name), view) for name, view in views.items())


def test_tensors_that_are_not_contiguous_are_written_as_they_read(tmp_path: Path) -> None:
    tensors = dict(random_tensors(DENSE))
    tensors["embed.weight"] = torch.randn(8, 19).T
    assert torch.equal(
        open_tensors(write(tmp_path, tensors=tensors.items())).get("embed.weight"), tensors["embed.weight"]
    )


def test_writing_holds_one_shard_and_one_tensor(tmp_path: Path) -> None:
    """Each tensor lies over a numpy array, which lives as long as anything that shares its memory."""
    arrays: list[weakref.ref[np.ndarray]] = []
    most_bytes = 0
    limit, largest = 2000, max(torch.Size(shape).numel() * 4 for shape in tensor_shapes(MIXTURE).values())

    def counted() -> Iterator[tuple[str, Tensor]]:
        nonlocal most_bytes
        for name, shape in tensor_shapes(MIXTURE).items():
            array = np.zeros(shape, dtype=np.float32)
            arrays.append(weakref.ref(array))
            most_bytes = max(most_bytes, sum(held.nbytes for ref in arrays if (held := ref()) is not None))
            tensor = torch.from_numpy(array)
            del array
            yield name, tensor
            del tensor

    gc.disable()  # nothing may wait for the collector
    try:
        write(tmp_path, MIXTURE, tensors=counted(), max_shard_bytes=limit)
    finally:
        gc.enable()
    assert limit < most_bytes <= limit + largest


@pytest.mark.parametrize("max_shard_bytes", [700, 1_000_000])
def test_the_digest_of_every_tensor_is_in_the_config(tmp_path: Path, max_shard_bytes: int) -> None:
    folder = write(tmp_path, MIXTURE, max_shard_bytes=max_shard_bytes)
    source = open_tensors(folder)
    digests = read_digests(folder)
    assert list(digests) == sorted(tensor_shapes(MIXTURE))
    assert digests == {name: tensor_sha256(source.get(name)) for name in source.names()}
    assert read_config(folder) == MIXTURE


def test_a_folder_without_digests_is_read_all_the_same(tmp_path: Path) -> None:
    path = write(tmp_path) / "config.json"
    data = json.loads(path.read_text())
    for made_by in ({"stage": "seed"}, {}, None):
        path.write_text(json.dumps(data | {"bam": made_by}))
        assert read_digests(tmp_path) == {}
        load_model(tmp_path)


# --- loading


def test_loaded_model_computes_what_was_written(tmp_path: Path) -> None:
    model = LM(MIXTURE)
    init_weights(model, seed=5)
    loaded = load_model(write(tmp_path, MIXTURE, tensors=model.state_dict().items(), max_shard_bytes=900))
    tokens_BT = torch.arange(10)[None]
    assert torch.equal(loaded(tokens_BT).hidden_BTD, model(tokens_BT).hidden_BTD)


@pytest.mark.parametrize(
    ("stored", "asked", "matrix", "router"),
    [
        (torch.float32, None, torch.float32, torch.float32),
        (torch.bfloat16, None, torch.float32, torch.float32),
        (torch.float64, None, torch.float64, torch.float64),
        (torch.float32, torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float64, torch.float64, torch.float64),
    ],
)
def test_loaded_dtype(
    tmp_path: Path, stored: torch.dtype, asked: torch.dtype | None, matrix: torch.dtype, router: torch.dtype
) -> None:
    tensors = {name: tensor.to(stored) for name, tensor in random_tensors(BTX)}
    state = load_model(write(tmp_path, BTX, tensors=tensors.items()), dtype=asked).state_dict()
    assert state["blocks.0.ffn.w_up"].dtype == matrix
    assert state["blocks.0.ffn.router"].dtype == router
    assert torch.equal(state["blocks.0.ffn.w_up"], tensors["blocks.0.ffn.w_up"].to(matrix))


def without(name: str) -> Iterator[tuple[str, Tensor]]:
    return ((found, tensor) for found, tensor in random_tensors(DENSE) if found != name)


def test_write_refuses_tensors_that_are_not_the_configs(tmp_path: Path) -> None:
    tensors = dict(without("blocks.1.attn.w_q"))
    tensors |= {"blocks.0.ffn.w_up": torch.zeros(3, 8), "lora.a": torch.zeros(1)}
    with pytest.raises(InvalidInput) as caught:
        write(tmp_path, tensors=tensors.items())
    assert {problem.path for problem in caught.value.problems} == {
        "blocks.1.attn.w_q",
        "blocks.0.ffn.w_up",
        "lora.a",
    }
    assert not (tmp_path / "config.json").exists()
    assert not (tmp_path / "model.safetensors").exists()


def test_load_names_missing_unknown_and_misshapen_tensors(tmp_path: Path) -> None:
    folder = write(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["old.name"] = tensors.pop("blocks.0.attn.w_k")
    tensors["norm.weight"] = torch.zeros(9)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InvalidInput) as caught:
        load_model(folder)
    assert {problem.path for problem in caught.value.problems} == {
        "blocks.0.attn.w_k",
        "old.name",
        "norm.weight",
    }
    assert "[9]" in str(caught.value)
    assert "[8]" in str(caught.value)


# --- identity and description


def test_sha256_is_that_of_the_stored_bytes(tmp_path: Path) -> None:
    """Also of a bf16 tensor and of one that is not contiguous."""
    for tensor in (torch.randn(3, 4), torch.randn(5, 2).T, torch.randn(7).bfloat16()):
        path = tmp_path / "one.safetensors"
        save_file({"x": tensor.contiguous()}, path)
        raw = path.read_bytes()
        stored = raw[8 + int.from_bytes(raw[:8], "little") :]
        assert tensor_sha256(tensor) == tensor_sha256(torch.frombuffer(bytearray(stored), dtype=torch.uint8))
    assert tensor_sha256(torch.zeros(1)) == "df3f619804a92fdb4057192dc43dd748ea778adc52bc498ce80524c014b81119"
