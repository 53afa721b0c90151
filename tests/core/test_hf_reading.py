"""Folders that cannot be imported: each is refused with field or file, value and remedy, all at once, and whole ones
are read lazily."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bam_core.checkpoint import load_model, open_tensors, read_config
from bam_core.errors import InvalidInput
from bam_core.hf import FAMILIES, OURS, read_checkpoint, value_problems, write_imported
from bam_core.nn.lm import LM, init_weights
from tests.hf_kit import SIZES, UP, change, tensors_of, write


def refused(folder: Path, **how: Any) -> dict[str, str]:
    """Path of each problem -> all that is said about it."""
    with pytest.raises(InvalidInput) as caught:
        read_checkpoint(folder, **how)
    problems = caught.value.problems
    assert all(problem.remedy for problem in problems), caught.value
    assert str(folder) in str(caught.value)
    return {problem.path: str(problem) for problem in problems}


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_becomes_a_model_folder_of_ours(shards: int, tmp_path: Path) -> None:
    imported = read_checkpoint(write(tmp_path / "theirs", shards=shards))
    assert (imported.family, imported.dtype, imported.tokenizer) == (
        "llama",
        torch.float32,
        tmp_path / "theirs" / "tokenizer.json",
    )
    assert list(value_problems(imported)) == []
    write_imported(imported, tmp_path / "ours", provenance={"stage": "here"})
    assert read_config(tmp_path / "ours") == imported.config
    theirs = tensors_of(SIZES | {"model_type": "llama"})
    ours = open_tensors(tmp_path / "ours")
    assert torch.equal(ours.get("blocks.1.ffn.w_up"), theirs[UP])
    assert torch.equal(ours.get("blocks.1.ffn.w_down"), theirs[UP.replace("up_proj", "down_proj")].T)
    assert (tmp_path / "ours" / "tokenizer.json").read_bytes() == imported.tokenizer.read_bytes()
    load_model(tmp_path / "ours")
    assert imported.origin("blocks.1.ffn.w_up").endswith(f".safetensors:{UP}")


def test_our_own_folder_is_read_too(tmp_path: Path) -> None:
    write_imported(read_checkpoint(write(tmp_path / "theirs")), tmp_path / "ours")
    again = read_checkpoint(tmp_path / "ours")
    assert again.family == OURS
    write_imported(again, tmp_path / "copy", torch.bfloat16)
    assert open_tensors(tmp_path / "copy").get("embed.weight").dtype == torch.bfloat16
    change(tmp_path / "ours", lambda tensors: tensors.pop("norm.weight"))
    with pytest.raises(InvalidInput, match=r"norm\.weight: is missing"):
        read_checkpoint(tmp_path / "ours")


def test_tensors_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is opened by names and shapes alone, and of packed matrices only the asked for are unpacked."""
    folder = write(tmp_path / "theirs", "falcon")
    imported = read_checkpoint(folder)
    read: list[str] = []
    for name, (file, held) in list(imported.weights.files.items()):

        class Watched:
            def __init__(self, held: Any) -> None:
                self.held = held

            def get_tensor(self, name: str) -> Tensor:
                read.append(name)
                found: Tensor = self.held.get_tensor(name)
                return found

        imported.weights.files[name] = (file, Watched(held))  # type: ignore[index]
    imported.tensors.get("blocks.1.attn.w_k")
    assert read == ["transformer.h.1.self_attention.query_key_value.weight"]


def test_files_without_an_index_are_read_by_their_names(tmp_path: Path) -> None:
    folder = write(tmp_path / "theirs", shards=3)
    (folder / "model.safetensors.index.json").unlink()
    assert len(read_checkpoint(folder).tensors.names()) == 21
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "hf download" in refused(folder)["model-00002-of-00003.safetensors"]


def test_no_folder_and_no_model(tmp_path: Path) -> None:
    assert "is not there" in refused(tmp_path / "nowhere")["folder"]
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert "GGUF" in refused(tmp_path / "x.gguf")["folder"]
    (tmp_path / "empty").mkdir()
    assert set(refused(tmp_path / "empty")) == {"config.json", "model.safetensors"}
    (tmp_path / "empty" / "adapter_config.json").write_text('{"base_model_name_or_path": "meta/base"}')
    assert "merge_and_unload" in refused(tmp_path / "empty")["adapter_config.json"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth"])
def test_pickles_are_refused_with_the_way_to_convert_them(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "theirs")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"\x80\x02cposix\nsystem\n.")
    said = refused(folder)[name]
    assert "a pickle" in said
    assert f"from_pretrained('{folder}').save_pretrained(" in said


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_no_json_object(content: bytes, tmp_path: Path) -> None:
    folder = write(tmp_path / "theirs")
    (folder / "config.json").write_bytes(content)
    assert "config.json" in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "model.safetensors.index.json"])
def test_a_pointer_of_git_lfs_is_named(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "theirs", shards=3 if "index" in name else 1)
    (folder / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n")
    assert "git lfs pull" in refused(folder)[name]


def test_an_architecture_that_is_not_known(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    for value, words in {
        "mixtral": "mixture of experts already",
        "lama": "did you mean 'llama'?",
        "bert": "known: cohere",
        None: "must name the architecture",
        7: "must name the architecture",
    }.items():
        config = json.loads((folder / "config.json").read_text()) | {"model_type": value}
        (folder / "config.json").write_text(json.dumps(config))
        assert words in refused(folder)["config.json.model_type"], value
    config |= {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config))
    assert "must be LlamaForCausalLM" in refused(folder)["config.json.architectures"]


def test_a_missing_or_damaged_shard(tmp_path: Path) -> None:
    folder = write(tmp_path / "theirs", shards=3)
    second, third = (folder / f"model-0000{i}-of-00003.safetensors" for i in (2, 3))
    second.unlink()
    third.write_bytes(third.read_bytes()[:100])
    said = refused(folder)
    assert "says that it holds 7 tensors" in said[second.name]
    assert "cut short or damaged" in said[third.name]
    assert len(said) == 2, "tensors of files that are not there are not missing by themselves"


def test_an_index_that_does_not_fit_its_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "theirs", shards=3)
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    names = [name for name, file in data["weight_map"].items() if file.startswith("model-00001")]
    moved = data["weight_map"] | {names[0]: "model-00002-of-00003.safetensors"}
    index.write_text(json.dumps({"weight_map": moved}))
    said = refused(folder)
    assert "does not name" in said["model-00001-of-00003.safetensors"]
    assert "lacks 1 tensors" in said["model-00002-of-00003.safetensors"]
    index.write_text(json.dumps({"weight_map": data["weight_map"] | {names[0]: "../../elsewhere.safetensors"}}))
    assert "must be a file of this folder" in "".join(refused(folder).values())
    for wrong in ({}, {"weight_map": []}, {"weight_map": {"a": 1}}):
        index.write_text(json.dumps(wrong))
        assert "model.safetensors.index.json.weight_map" in refused(folder)


def test_tensors_that_are_missing_misshapen_left_over_or_quantised(tmp_path: Path) -> None:
    folder = write(tmp_path / "theirs")

    def edit(tensors: dict[str, Tensor]) -> None:
        del tensors["model.norm.weight"]
        tensors[UP] = torch.ones(13, 8)
        tensors["model.layers.0.mlp.gate_proj.weight"] = torch.ones(12, 8, dtype=torch.int8)
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.ones(8)
        tensors["model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.ones(2, 8)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)  # a table of an old version

    said = refused(change(folder, edit))
    assert "must be [8]" in said["model.norm.weight"]
    assert "[13, 8]: must be [12, 8]" in said[f"model.safetensors:{UP}"]
    assert "quantised" in said["model.safetensors:model.layers.0.mlp.gate_proj.weight"]
    assert "that there is a bias" in said["model.safetensors:model.layers.0.self_attn.q_proj.bias"]
    assert "merge the adapter" in said["model.safetensors:model.layers.0.self_attn.q_proj.lora_A.weight"]
    assert len(said) == 5


def test_a_head_that_is_not_there_or_not_the_embedding(tmp_path: Path) -> None:
    folder = change(write(tmp_path / "a"), lambda tensors: tensors.pop("lm_head.weight"))
    assert "tie_word_embeddings to true" in refused(folder)["lm_head.weight"]
    tied = read_checkpoint(write(tmp_path / "b", tie_word_embeddings=True))
    [problem] = value_problems(tied)
    assert problem.path == "model.safetensors:lm_head.weight"
    with pytest.raises(InvalidInput, match="must be the embedding"):
        write_imported(tied, tmp_path / "out")
    same = write(tmp_path / "c", tie_word_embeddings=True)
    change(same, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    assert list(value_problems(read_checkpoint(same))) == []


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[UP][0, 0] = torch.nan
        tensors["model.norm.weight"][3] = -torch.inf

    imported = read_checkpoint(change(write(tmp_path / "theirs"), edit))
    found = {problem.path: str(problem.value) for problem in value_problems(imported)}
    assert found == {
        f"model.safetensors:{UP}": "1 NaN of 96 values",
        "model.safetensors:model.norm.weight": "1 infinite of 8 values",
    }
    with pytest.raises(InvalidInput, match="2 problems"):
        write_imported(imported, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_code_of_the_folder_is_refused_and_never_run(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "theirs", auto_map={"AutoModelForCausalLM": "modeling_x.XForCausalLM", "AutoTokenizer": []}
    )
    (folder / "modeling_x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    said = refused(folder)["config.json.auto_map.AutoModelForCausalLM"]
    assert "never run" in said
    assert "--ignore-code" in said
    assert read_checkpoint(folder, ignore_code=True).family == "llama"
    assert not (tmp_path / "ran").exists()


def test_options_that_cannot_be_expressed_are_named_together(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "theirs",
        hidden_act="quick_gelu",
        rope_scaling={"rope_type": "yarn", "factor": 4.0},
        quantization_config={"quant_method": "gptq"},
        rms_norm_eps=0,
        num_attention_heads="2",
    )
    (folder / "tokenizer.json").write_text('{"model": {"vocab": []}, "added_tokens": [{"id": 11}]}')
    with pytest.raises(InvalidInput) as caught:
        read_checkpoint(folder)
    assert {problem.path for problem in caught.value.problems} == {
        "config.json.hidden_act",
        "config.json.rope_scaling.rope_type",
        "config.json.quantization_config",
        "config.json.rms_norm_eps",
        "config.json.num_attention_heads",
    }


@pytest.mark.parametrize(
    ("model_type", "changes", "field"),
    [
        ("phi", {"qk_layernorm": True}, "qk_layernorm"),
        ("phi", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("falcon", {"alibi": True}, "alibi"),
        ("falcon", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn"),
        ("falcon", {"new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("cohere2", {"sliding_window": None}, "sliding_window"),
        ("qwen2", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ("qwen3", {"layer_types": ["full_attention"]}, "layer_types"),
        ("mistral", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "rope_parameters"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ("llama", {"rope_theta": "10k"}, "rope_theta"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("gpt_neox", {"num_key_value_heads": 1}, "num_key_value_heads"),
        ("stablelm", {"head_dim": 16}, "head_dim"),
        ("llama", {"hidden_size": True}, "hidden_size"),
        ("cohere", {"logit_scale": None}, "logit_scale"),
    ],
)
def test_an_option_that_cannot_be_expressed(model_type: str, changes: dict[str, Any], field: str) -> None:
    config, problems = FAMILIES[model_type].parse(SIZES | {"model_type": model_type} | changes)
    assert config is None
    assert f"config.json.{field}" in [problem.path for problem in problems], problems


def test_a_tokenizer_with_more_ids_than_the_model(tmp_path: Path) -> None:
    folder = write(tmp_path / "theirs")
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 11}}}')
    assert "vocab_size, 11" in refused(folder)["tokenizer.json"]
    (folder / "tokenizer.json").write_text("not json")
    assert "tokenizer.json" in refused(folder)
    (folder / "tokenizer.json").unlink()
    assert read_checkpoint(folder).notes == ("no tokenizer",)
    (folder / "tokenizer.model").write_bytes(b"")
    assert read_checkpoint(folder).tokenizer is None


def test_many_tensors_are_counted_after_some_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "theirs", "llama", num_hidden_layers=40)
    said = refused(folder)
    assert len(said) == 13
    assert any("more tensors" in words for words in said.values())


def test_equal_folders_give_equal_models(tmp_path: Path) -> None:
    model = LM(read_checkpoint(write(tmp_path / "theirs", shards=3)).config)
    init_weights(model, 0)
    for name in ("a", "b"):
        write_imported(read_checkpoint(tmp_path / "theirs"), tmp_path / name)
    files = [path.name for path in sorted((tmp_path / "a").iterdir())]
    assert files == [path.name for path in sorted((tmp_path / "b").iterdir())]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
