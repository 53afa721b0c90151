"""A LoRA adapter as peft writes it: what its files say, and what is not understood.

Source: Hu et al. 2021 (LoRA); rsLoRA, Kalajdzievski 2023, for `use_rslora`; DoRA, Liu et al. 2024, for `use_dora`.
`adapter_merge` makes it one with its base.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from bam_core.checkpoint import TensorSource
from bam_core.documents import read_json
from bam_core.errors import ArtifactDamaged, InvalidInput, Problem
from bam_core.nn.shapes import Shape

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"

MERGE_FIRST = "merge it with peft (merge_and_unload) and give the folder that save_pretrained writes"
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "layer_replication": (None, []),
    "megatron_config": (None, {}),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None, {}),
    "kasa_config": (None, {}),
    "velora_config": (None, {}),
    "monteclora_config": (None, {}),
    "use_qalora": (None, False),
    "use_bdlora": (None, False, {}),
}
"""Settings under which the adapter is more than the formula says -> the values with which it is not."""
_PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Ways to start that leave the base as it was; others (pissa, olora, corda ...) have taken a part out of it."""


@dataclass(frozen=True)
class Delta:
    """What the adapter has for one module: names of its tensors, and the scale of the product of b and a.

    magnitude: of DoRA. bias: of B."""

    a: str
    b: str
    magnitude: str | None = None
    bias: str | None = None
    is_embedding: bool = False
    scale: float = 1.0

    @property
    def parts(self) -> tuple[str, ...]:
        """Of the module: what it changes."""
        return ("weight",) if self.bias is None else ("weight", "bias")


@dataclass(frozen=True)
class Adapter:
    """An adapter that was read. deltas: module of the base -> its delta. full: tensor of the base -> the adapter's that
    takes its place (`modules_to_save`, biases). base: what its config names as its base, for people.

    transposed: matrices of the base are [in, out] (`fan_in_fan_out`). targets: last names of modules of which each must
    have a delta; empty where its config says that otherwise.
    """

    folder: Path
    rank: int
    base: str | None
    transposed: bool
    deltas: Mapping[str, Delta]
    full: Mapping[str, str]
    targets: tuple[str, ...]
    tensors: TensorSource = field(repr=False)


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def read_adapter(folder: Path) -> Adapter:
    """Read what an adapter is, and the names of its tensors. Raises InvalidInput with all that is not understood."""
    here = f"adapter {folder.name}"
    try:
        config = read_json(folder / ADAPTER_CONFIG)
    except ArtifactDamaged as error:
        raise InvalidInput(here, [Problem(ADAPTER_CONFIG, folder.name, str(error))]) from error
    problems = list(_config_problems(config))
    if not (folder / ADAPTER_WEIGHTS).is_file():
        problems.append(_no_weights(folder))
    if problems:
        raise InvalidInput(here, problems)
    source = _open(folder / ADAPTER_WEIGHTS, here)
    deltas, full, problems = _sorted_out(source.names(), config)
    if problems:
        raise InvalidInput(here, problems)
    targets = config.get("target_modules")
    is_partial = any(config.get(name) for name in ("layers_to_transform", "exclude_modules", "layers_pattern"))
    return Adapter(
        folder,
        config["r"],
        config.get("base_model_name_or_path"),
        bool(config.get("fan_in_fan_out")),
        deltas,
        full,
        tuple(targets) if isinstance(targets, list) and not is_partial else (),
        source,
    )


def _no_weights(folder: Path) -> Problem:
    if (folder / PICKLE).is_file():
        remedy = "load it where you trust it, and save it again: model.save_pretrained(DIR)"
        return Problem(PICKLE, folder.name, "is a pickle, which can run code when it is read", remedy)
    return Problem(ADAPTER_WEIGHTS, None, "is missing", "an adapter's folder holds it beside adapter_config.json")


def _config_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    if config.get("peft_type") != "LORA":
        yield Problem("peft_type", config.get("peft_type"), "must be LORA", MERGE_FIRST)
        return
    if not isinstance(config.get("r"), int) or config["r"] < 1:
        yield Problem("r", config.get("r"), "must be a rank, 1 or more")
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        yield Problem("lora_alpha", alpha, "must be a number")
    if config.get("init_lora_weights", True) not in _PLAIN_INITS:
        expected = "has changed the base: the difference is against another one than its name says"
        remedy = f"convert it (path_initial_model_for_weight_conversion), or {MERGE_FIRST}"
        yield Problem("init_lora_weights", config["init_lora_weights"], expected, remedy)
    for name, neutral in _NEUTRAL.items():
        if config.get(name) not in neutral:
            yield Problem(name, config[name], "is not understood here", MERGE_FIRST)


class _File:
    def __init__(self, file: Any) -> None:
        self._file = file

    def names(self) -> list[str]:
        return sorted(self._file.keys())

    def shape(self, name: str) -> Shape:
        return tuple(self._file.get_slice(name).get_shape())

    def get(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


def _open(path: Path, here: str) -> TensorSource:
    try:
        return _File(safe_open(path, framework="pt"))
    except (SafetensorError, OSError) as error:
        raise InvalidInput(here, [Problem(path.name, here, f"cannot be read as safetensors ({error})")]) from error


_PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+?)\.(?P<what>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?:default|weight|default\.weight))?"
)
_BIAS_OF_B = re.compile(r"(?P<module>.+)\.lora_B(?:\.default)?\.bias")
_FIELDS = {
    "lora_A": "a",
    "lora_B": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "magnitude",
}


def _sorted_out(
    names: Sequence[str], config: Mapping[str, Any]
) -> tuple[dict[str, Delta], dict[str, str], list[Problem]]:
    """(module -> delta, tensor of the base -> what takes its place, problems)."""
    found: dict[str, dict[str, Any]] = {}
    full: dict[str, str] = {}
    problems = []
    for name in names:
        plain = name.removeprefix(_PREFIX)
        if part := _PART.fullmatch(plain):
            what = part["what"]
            entry = found.setdefault(part["module"], {})
            entry[_FIELDS[what]] = name
            entry["is_embedding"] = what.startswith("lora_embedding") or entry.get("is_embedding", False)
        elif bias := _BIAS_OF_B.fullmatch(plain):
            found.setdefault(bias["module"], {})["bias"] = name
        elif "lora_" in plain or "trainable_tokens" in plain or not plain.endswith((".weight", ".bias")):
            problems.append(Problem(name, None, "is no tensor of a LoRA that is understood here", MERGE_FIRST))
        else:
            full[re.sub(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.)", "", plain)] = name
    deltas = {}
    for module, entry in found.items():
        for which, label in (("a", "A"), ("b", "B")):
            if which not in entry:
                problems.append(Problem(module, None, f"has no matrix {label}", "save the adapter again"))
        if entry.get("is_embedding") and "magnitude" in entry:
            problems.append(Problem(module, None, "DoRA of an embedding is not understood here", MERGE_FIRST))
        if {"a", "b"} <= entry.keys():
            deltas[module] = Delta(**entry, scale=_scale(module, config))
    if not found and not full:
        problems.append(Problem(ADAPTER_WEIGHTS, None, "has no tensor of a LoRA"))
    return deltas, full, problems


def _scale(module: str, config: Mapping[str, Any]) -> float:
    """alpha / r, or alpha / sqrt(r) with `use_rslora`; a module's own by `rank_pattern` and `alpha_pattern`."""
    rank = _of_pattern(config.get("rank_pattern"), module, config["r"])
    alpha = _of_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _of_pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """The value of the first pattern that is the module's name, or the end of it, as peft matches them."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return default
