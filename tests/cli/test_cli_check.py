"""`bam check`: pairs that fit and pairs that do not, and what is said of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from bam_core.data.tokenize import train_bpe
from tests.e2e.kit import NO_MLFLOW, Place, lines_of

pytestmark = pytest.mark.filterwarnings("ignore")
V = 300
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": V,
    "tie_word_embeddings": False,
}
TOKENIZER = train_bpe(lines_of("general"), V)


def save(folder: Path, config: Any = None, seed: int = 0, moved: float = 0.0, tokenizer: str = TOKENIZER) -> Any:
    """A model with random weights, those of `seed`, each moved by noise of this size."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config or LlamaConfig(**SIZES))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.1)
    torch.manual_seed(99)
    for parameter in model.parameters():
        parameter.data += moved * torch.randn_like(parameter)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer)
    return model


def reordered() -> str:
    """The last two tokens change places."""
    definition = json.loads(TOKENIZER)
    vocab = definition["model"]["vocab"]
    one, two = sorted(vocab, key=vocab.get)[-2:]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    return json.dumps(definition)


def with_chat_token(size: int = V) -> str:
    definition = json.loads(TOKENIZER)
    token = definition["added_tokens"][0] | {"id": size, "content": "<|im_start|>"}
    definition["added_tokens"].append(token)
    return json.dumps(definition)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("models")
    base = save(here / "base")
    save(here / "tuned", moved=0.01)
    save(here / "unrelated", seed=1)
    save(here / "wider", LlamaConfig(**SIZES | {"intermediate_size": 64}))
    save(here / "qwen", Qwen2Config(**SIZES))
    save(here / "rotary", LlamaConfig(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 5e5}))
    save(here / "eps", LlamaConfig(**SIZES, rms_norm_eps=1e-5), moved=0.01)
    save(here / "order", moved=0.01, tokenizer=reordered())
    chat = save(here / "chat", moved=0.01, tokenizer=with_chat_token())
    chat.resize_token_embeddings(V + 1)
    chat.save_pretrained(here / "chat")
    long = save(here / "long", LlamaConfig(**SIZES | {"max_position_embeddings": 128}))
    long.bfloat16().save_pretrained(here / "long")
    (here / "pickle").mkdir()
    (here / "pickle" / "config.json").write_bytes((here / "base" / "config.json").read_bytes())
    (here / "pickle" / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")
    tuned = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    tuned.save_pretrained(here / "adapter")
    return here


def check(models: Path, *words: str) -> tuple[int, Mapping[str, Any], str]:
    place = Place(models / "none.yaml", models / "store")
    named = [str(models / word) if (models / word).is_dir() else word for word in words]
    answer = place.bam("check", *named, "--json", tracking=NO_MLFLOW)
    return answer.status, answer.json if answer.out else {}, answer.err


def said(found: Mapping[str, Any], name: str) -> dict[str, tuple[str, str]]:
    """Aspect -> (verdict, words), the worst where there are several."""
    worst = ("fits", "note", "misfit")
    lines = sorted(found["models"][name], key=lambda line: worst.index(line["verdict"]))
    return {line["aspect"]: (line["verdict"], line["words"]) for line in lines}


FITTING = {
    ("tuned",): {"weights": "fits", "tokenizer": "fits", "architecture": "fits"},
    ("base",): {"weights": "note"},
    ("adapter",): {"opened": "fits", "weights": "fits"},
    ("long",): {"context": "note", "dtype": "note"},
    ("order", "--vocabulary", "seed"): {"tokenizer": "note"},
    ("chat", "--vocabulary", "union"): {"tokenizer": "note", "special tokens": "note"},
    ("chat", "--vocabulary", "seed"): {"tokenizer": "note"},
}


@pytest.mark.parametrize("words", FITTING, ids=" ".join)
def test_a_pair_that_fits(models: Path, words: tuple[str, ...]) -> None:
    status, found, err = check(models, "base", *words)
    assert (status, found["fits"]) == (0, True), (found, err)
    [name] = list(found["models"])[1:]
    lines = said(found, name)
    assert {aspect: lines[aspect][0] for aspect in FITTING[words]} == FITTING[words], lines
    assert found["vocabulary"] == (V + 1 if "union" in words else V)
    bam, shared, btx = (found["sizes"][name] for name in ("bam", "bam_shared_kv", "btx"))
    assert bam["cache_bytes_per_token"] == 2 * shared["cache_bytes_per_token"] == 2 * btx["cache_bytes_per_token"]
    assert bam["params_total"] > shared["params_total"] > btx["params_total"]
    assert found["distances"][name]["judged"]["cosine"] > 0.9


MISFITS = {
    "unrelated": ("weights", "unrelated"),
    "wider": ("shapes", "d_ff 64, the seed's is 48"),
    "qwen": ("architecture", "qkv_bias True, the seed's is False"),
    "rotary": ("rotary", "rope_theta 500000.0, the seed's is 10000.0"),
    "eps": ("norm", "norm_eps 1e-05, the seed's is 1e-06"),
    "order": ("tokenizer", "another order"),
    "chat": ("tokenizer", "a superset: 1 tokens more"),
    "pickle": ("opened", "pickle"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_pair_that_does_not_fit(models: Path, name: str) -> None:
    status, found, _ = check(models, "base", name)
    assert (status, found["fits"], found["sizes"]) == (1, False, {})
    aspect, words = MISFITS[name]
    lines = said(found, name)
    assert lines[aspect][0] == "misfit"
    assert words in lines[aspect][1]
    assert [each for each, (verdict, _) in lines.items() if verdict == "misfit"] == [aspect]


def test_the_table_names_all_that_do_not_fit(models: Path) -> None:
    place = Place(models / "none.yaml", models / "store")
    answer = place.bam("check", *(str(models / name) for name in ("base", "tuned", "unrelated", "wider")))
    assert answer.status == 1
    assert "they do not fit: unrelated, wider" in answer.out
    assert "DOES NOT FIT: d_ff 64" in answer.out
    fitting = place.bam("check", *(str(models / name) for name in ("base", "tuned", "adapter")), "--no-weights")
    assert fitting.status == 0
    assert "BAM, expert keys and values" in fitting.out


def test_bad_usage(models: Path) -> None:
    assert check(models, "base")[0] == 2
    status, _, err = check(models, "base", "nowhere")
    assert status == 2
    assert "nowhere: is no folder here" in err
