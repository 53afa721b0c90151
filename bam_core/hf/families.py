"""The public families: what their config.json means here, what their tensors are called, and the way back.

Reading asks for every field that changes what the class computes, and refuses a value that cannot be expressed. Writing
is checked by reading back: a config that a class has no words for comes out otherwise and is refused, by field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from bam_core.config import ModelConfig
from bam_core.errors import InvalidInput, Problem, nearest
from bam_core.hf import parallel, sequential
from bam_core.hf.links import Link
from bam_core.hf.names import Names, links
from bam_core.hf.options import Options
from bam_core.hf.rope import RopeNames, read_rope, write_rope

if TYPE_CHECKING:
    from torch import Tensor

    from bam_core.checkpoint import TensorSource

THEIRS = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "d_ff": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "d_head": "head_dim",
    "tie_embeddings": "tie_word_embeddings",
    "rotary_frac": "rope_parameters.partial_rotary_factor",
    "rope_theta": "rope_parameters.rope_theta",
    "rope_scaling": "rope_parameters",
    "window": "sliding_window",
    "global_layers": "layer_types",
}
"""Our fields that most families have under another name."""


@dataclass(frozen=True)
class Family:
    """model_type, architecture: of config.json. defaults: of the fields that `read` asks for, as the class has them.

    read: options to fields of our config, all but rotary embedding. write: the way back.
    """

    model_type: str
    architecture: str
    defaults: Mapping[str, Any]
    read: Callable[[Options], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    names: Names
    rope: RopeNames = field(default_factory=RopeNames)

    def config(self, data: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
        """Our config of theirs. Raises InvalidInput with every field that is wrong or cannot be expressed."""
        config, problems = self.parse(data)
        if config is None:
            raise InvalidInput(where, problems)
        return config

    def parse(self, data: Mapping[str, Any]) -> tuple[ModelConfig | None, list[Problem]]:
        """`config` for a caller that has other problems to tell too; None if there are any."""
        options = Options(data, self.defaults)
        values = self.read(options) | read_rope(options, self.rope)
        if options.problems:
            return None, options.problems
        config = ModelConfig(**values)
        found = [_in_their_words(problem) for problem in config.problems()]
        return (None if found else config), found

    def to_hf(self, config: ModelConfig) -> dict[str, Any]:
        """The config.json of a dense model. Raises InvalidInput naming all that this class has no words for."""
        data: dict[str, Any] = {"model_type": self.model_type, "architectures": [self.architecture]}
        data |= {"vocab_size": config.vocab_size, "tie_word_embeddings": config.tie_embeddings}
        data |= self.write(config) | write_rope(config, self.rope)
        read, problems = self.parse(data)
        back = asdict(read) if read is not None else asdict(config)
        wanted = asdict(config)
        problems = [Problem(problem.path, problem.value, problem.expected) for problem in problems]
        problems += [
            Problem(name, wanted[name], f"cannot be said to {self.architecture}, which has {back[name]!r}")
            for name in back
            if back[name] != wanted[name]
        ]
        if problems:
            raise InvalidInput(f"the config of a {self.model_type} model", problems)
        return data

    def links(self, config: ModelConfig) -> list[Link]:
        """All of our tensors with all of theirs, in our reading order."""
        return links(config, self.names)

    def hf_tensors(self, config: ModelConfig, source: TensorSource) -> Iterator[tuple[str, Tensor]]:
        """The tensors of a dense model under their names and in their form, a few at a time.

        Raises InvalidInput for values that cannot be written: scales that differ from head to head, where theirs has
        one for all. A tensor that is wider here than the embedding (a scale stored less 1) comes out in its dtype.
        """
        dtype = source.get("embed.weight").dtype
        for link in self.links(config):
            found = link.to_theirs([source.get(name) for name in link.ours])
            for name, tensor in zip(link.theirs, found, strict=True):
                yield name, tensor.to(dtype) if link.is_wide else tensor


def _in_their_words(problem: Problem) -> Problem:
    words = re.sub(r"\b\w+\b", lambda match: THEIRS.get(match[0], match[0]), problem.expected)
    return Problem(f"config.json.{THEIRS.get(problem.path, problem.path)}", problem.value, words, problem.remedy)


_ALL = (
    Family("llama", "LlamaForCausalLM", *sequential.LLAMA),
    Family("mistral", "MistralForCausalLM", *sequential.MISTRAL),
    Family("qwen2", "Qwen2ForCausalLM", *sequential.QWEN2),
    Family("qwen3", "Qwen3ForCausalLM", *sequential.QWEN3),
    Family("olmo2", "Olmo2ForCausalLM", *sequential.OLMO2),
    Family("gemma2", "Gemma2ForCausalLM", *sequential.GEMMA2),
    Family("cohere", "CohereForCausalLM", *parallel.COHERE, RopeNames(default_theta=500_000.0)),
    Family("cohere2", "Cohere2ForCausalLM", *parallel.COHERE2),
    Family(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        *parallel.GPT_NEOX,
        RopeNames("rotary_emb_base", "rotary_pct", default_frac=0.25),
    ),
    Family("stablelm", "StableLmForCausalLM", *parallel.STABLELM, RopeNames(default_frac=0.25)),
    Family("phi", "PhiForCausalLM", *parallel.PHI, RopeNames(default_frac=0.5)),
    Family("falcon", "FalconForCausalLM", *parallel.FALCON),
)
FAMILIES: Mapping[str, Family] = {family.model_type: family for family in _ALL}
"""By `model_type` of config.json."""
MIXTURES = ("moe", "mixtral", "dbrx", "jamba", "deepseek_v", "minimax", "gpt_oss")
"""In the model_type of what is a mixture of experts already."""


def find_family(data: Mapping[str, Any]) -> tuple[Family | None, list[Problem]]:
    """By `model_type`; None, and what is wrong, for one that is not known or whose weights are of another class."""
    model_type, remedy = data.get("model_type"), f"known: {', '.join(FAMILIES)}"
    if not isinstance(model_type, str):
        where = "config.json.model_type"
        return None, [Problem(where, model_type, "must name the architecture", remedy)]
    if model_type not in FAMILIES:
        reason = "is no architecture that can be expressed here"
        if any(word in model_type for word in MIXTURES):
            reason = "is a mixture of experts already; dense models are imported"
        close = nearest(model_type, FAMILIES)
        return None, [Problem("config.json.model_type", model_type, reason, close)]
    family = FAMILIES[model_type]
    architectures = data.get("architectures")
    if architectures in (None, [], [family.architecture]):
        return family, []
    reason = f"must be {family.architecture}: other heads and bare models have other tensors"
    return family, [Problem("config.json.architectures", architectures, reason, "save the causal language model")]
