"""A LoRA adapter as peft writes it, merged into its base while that is read: W' = W + scale * B A.

Source: Hu et al. 2021 (LoRA); rsLoRA, Kalajdzievski 2023, for `use_rslora`; DoRA, Liu et al. 2024, for `use_dora`.
Invariant: every tensor of the adapter changes a tensor of the base, or all of it is refused by name; what it has no
tensor for is the base's. Names are those of the base's own files, before any conversion. The sum is made in float32, or
the base's dtype where that is wider, and stays so: rounding it to bf16 would lose most of a small difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bam_core.checkpoint import TensorSource
from bam_core.documents import read_json
from bam_core.errors import ArtifactDamaged, InvalidInput, Problem
from bam_core.hf.files import Weights
from bam_core.hf.links import Link
from bam_core.hf.reading import Imported
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


def adapted(base: Imported, adapter: Adapter) -> Imported:
    """The base with the adapter merged in, each tensor when it is asked for. Raises as `merged_tensors`."""
    if not base.links:
        expected = "is a folder of bam, whose modules have other names than the adapter's"
        remedy = "give the folder or id that the adapter was trained on, as its tools wrote it"
        raise InvalidInput(f"adapter {adapter.folder.name}", [Problem("base", base.family, expected, remedy)])
    files = {name: base.weights.files[name] for link in base.links for name in link.theirs}
    merged = merged_tensors(adapter, _Held(files))
    return replace(base, tensors=_InOurNames(base, merged), weights=Weights(files, []))


class _Held:
    """The base's tensors under its own names."""

    def __init__(self, files: Mapping[str, tuple[str, Any]]) -> None:
        self._files = files

    def names(self) -> list[str]:
        return list(self._files)

    def shape(self, name: str) -> Shape:
        return tuple(self._files[name][1].get_slice(name).get_shape())

    def get(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name][1].get_tensor(name)
        return tensor


class _InOurNames:
    """`theirs`, which has tensors of a base, as the base's links make them ours."""

    def __init__(self, base: Imported, theirs: TensorSource) -> None:
        self._base, self._theirs = base, theirs
        self._links: dict[str, tuple[Link, int]] = {
            name: (link, place) for link in base.links for place, name in enumerate(link.ours)
        }

    def names(self) -> list[str]:
        return self._base.tensors.names()

    def shape(self, name: str) -> Shape:
        return self._base.tensors.shape(name)

    def get(self, name: str) -> Tensor:
        link, place = self._links[name]
        return link.to_ours([self._theirs.get(theirs) for theirs in link.theirs])[place]


def merged_tensors(adapter: Adapter, base: TensorSource) -> TensorSource:
    """The base's tensors with the adapter merged in, each when it is asked for.

    Raises InvalidInput naming every delta that no tensor of the base takes, and every target without one.
    """
    problems = list(_fit_problems(adapter, base))
    if problems:
        raise InvalidInput(f"adapter {adapter.folder.name}", problems)
    return _Merged(adapter, base)


OTHER_BASE = "it was trained on another base, or on one whose modules have other names"


def _fit_problems(adapter: Adapter, base: TensorSource) -> Iterator[Problem]:
    names = set(base.names())
    for module, delta in adapter.deltas.items():
        weight = f"{module}.weight"
        if weight not in names:
            yield Problem(module, None, "is no module of the base; its change would be lost", OTHER_BASE)
            continue
        wanted, found = base.shape(weight), _delta_shape(adapter, delta)
        if found != wanted:
            yield Problem(weight, list(found), f"must be {list(wanted)}, as in the base", OTHER_BASE)
        if delta.bias is not None and f"{module}.bias" not in names:
            yield Problem(f"{module}.bias", None, "the base has no such bias to add to", MERGE_FIRST)
    for name, own in adapter.full.items():
        if name not in names:
            yield Problem(name, None, "is no tensor of the base; it would be lost", OTHER_BASE)
        elif adapter.tensors.shape(own) != base.shape(name):
            found = adapter.tensors.shape(own)
            yield Problem(name, list(found), f"must be {list(base.shape(name))}, as in the base", MERGE_FIRST)
    for target in adapter.targets:
        for name in sorted(names):
            module = name.removesuffix(".weight")
            is_meant = module != name and (module == target or module.endswith(f".{target}"))
            is_used = module in adapter.deltas or name in adapter.full
            if is_meant and not is_used and len(base.shape(name)) == 2:
                expected = "has no delta, though target_modules names it"
                yield Problem(module, None, expected, "save the adapter again, or say exclude_modules")


def _delta_shape(adapter: Adapter, delta: Delta) -> Shape:
    """Of B A, as the base has it."""
    (_, n_in), (n_out, _) = adapter.tensors.shape(delta.a), adapter.tensors.shape(delta.b)
    return (n_in, n_out) if delta.is_embedding or adapter.transposed else (n_out, n_in)


class _Merged:
    """A `TensorSource`: no more than one tensor of the base is held."""

    def __init__(self, adapter: Adapter, base: TensorSource) -> None:
        self._adapter, self._base = adapter, base
        self._biases = {f"{module}.bias": delta for module, delta in adapter.deltas.items() if delta.bias is not None}

    def names(self) -> list[str]:
        return self._base.names()

    def shape(self, name: str) -> Shape:
        return self._base.shape(name)

    def get(self, name: str) -> Tensor:
        full = self._adapter.full.get(name)
        tensor = self._base.get(name) if full is None else self._adapter.tensors.get(full)
        if (delta := self._biases.get(name)) is not None and delta.bias is not None:
            return _wide(tensor) + delta.scale * self._read(delta.bias, tensor)
        delta = self._adapter.deltas.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        return tensor if delta is None else self._changed(tensor, delta)

    def _changed(self, tensor: Tensor, delta: Delta) -> Tensor:
        product = self._read(delta.b, tensor) @ self._read(delta.a, tensor) * delta.scale
        is_turned = delta.is_embedding or self._adapter.transposed
        changed = _wide(tensor) + (product.T if is_turned else product)
        if delta.magnitude is None:
            return changed
        # DoRA: the norm of each output's row is the magnitude that was trained.
        rows = changed.T if is_turned else changed
        scaled: Tensor = rows * (self._read(delta.magnitude, tensor).reshape(-1) / rows.norm(dim=1))[:, None]
        return (scaled.T if is_turned else scaled).contiguous()

    def _read(self, name: str, like: Tensor) -> Tensor:
        return self._adapter.tensors.get(name).to(_wide_dtype(like))


def _wide_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(_wide_dtype(tensor))
