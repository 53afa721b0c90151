"""Rotary embedding in public configs: `rope_parameters` of transformers 5, and `rope_theta`, `rope_scaling`,
`partial_rotary_factor` (or a family's own names) of those before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bam_core.config import ModelConfig, RopeScaling
from bam_core.hf.options import Options

EXPRESSED = ("default", "linear", "llama3")
_LLAMA3 = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass(frozen=True)
class RopeNames:
    """theta, frac: the names of fields outside `rope_parameters`. default_theta: of the class.

    default_frac: the part of channels that rotate; None where the class always rotates all of them.
    """

    theta: str = "rope_theta"
    frac: str = "partial_rotary_factor"
    default_theta: float = 10_000.0
    default_frac: float | None = None


def read_rope(options: Options, names: RopeNames) -> dict[str, Any]:
    """The fields of our config; what cannot be expressed goes to the options' problems."""
    where, found = _parameters(options)
    theta = found.get("rope_theta", options.data.get(names.theta))
    frac = found.get("partial_rotary_factor", options.data.get(names.frac))
    fields: dict[str, Any] = {"rope_theta": names.default_theta if theta is None else theta}
    default_frac = 1.0 if names.default_frac is None else names.default_frac
    fields["rotary_frac"] = default_frac if frac is None else frac
    for name, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            options.refuse(names.theta if name == "rope_theta" else names.frac, value, "must be a positive number")
            fields[name] = 1.0
        fields[name] = float(fields[name])
    if names.default_frac is None and fields["rotary_frac"] != 1:
        reason = "this class rotates all channels of a head, whatever stands here"
        options.refuse(names.frac, frac, reason, "set it to 1 if the model was trained with this class")
    return fields | {"rope_scaling": _scaling(options, where, found)}


def _parameters(options: Options) -> tuple[str, Mapping[str, Any]]:
    """The dictionary, under its name. The older name comes first, as in transformers."""
    for where in ("rope_scaling", "rope_parameters"):
        found = options.data.get(where)
        if not found:
            continue
        if not isinstance(found, Mapping):
            options.refuse(where, found, "must be an object")
        elif any(isinstance(value, Mapping) for value in found.values()):
            options.refuse(where, found, "has rotary embeddings of each kind of layer; all layers here share one")
        else:
            return where, found
    return "rope_parameters", {}


def _scaling(options: Options, where: str, found: Mapping[str, Any]) -> RopeScaling | None:
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in EXPRESSED:
        reason = f"cannot be expressed; rotary embeddings here are {', '.join(EXPRESSED)}"
        options.refuse(f"{where}.rope_type", kind, reason, "give the checkpoint from before its context was extended")
        return None
    if kind == "default":
        return None
    wanted = ("factor", *(_LLAMA3 if kind == "llama3" else ()))
    values: dict[str, Any] = {name: found.get(name) for name in wanted}
    if kind == "llama3":
        length = options.data.get("original_max_position_embeddings", values["original_max_position_embeddings"])
        values["original_max_position_embeddings"] = (
            options.get("max_position_embeddings") if length is None else length
        )
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            options.refuse(f"{where}.{name}", value, "must be a positive number")
            return None
    if kind == "linear":
        return RopeScaling("linear", float(values["factor"]))
    return RopeScaling(
        "llama3",
        float(values["factor"]),
        float(values["low_freq_factor"]),
        float(values["high_freq_factor"]),
        int(values["original_max_position_embeddings"]),
    )


def write_rope(config: ModelConfig, names: RopeNames) -> dict[str, Any]:
    """`rope_parameters` as transformers 5 reads them, and `rope_theta` for what is older."""
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if names.default_frac is not None:
        found["partial_rotary_factor"] = config.rotary_frac
    scaling = config.rope_scaling
    if scaling is not None:
        found |= {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            values = (scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_seq_len)
            found |= dict(zip(_LLAMA3, values, strict=True))
    return {"rope_parameters": found}
