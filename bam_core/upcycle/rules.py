"""A rule says how the target's tensors of one kind are made from the experts' tensors of the same name.

stack   one slice per expert, in stacking order: the leading E of an expert tensor
mean    (or another row of `merge.MERGES`) one tensor from all experts'
copy    the seed's tensor; those of the other experts are set aside
fresh   newly initialised by a row of `router_init.INITS`
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ROUTER_INITS = ("random", "zero")
"""The rows of `router_init.INITS`, named here too, so that planning a variant loads no torch."""


@dataclass(frozen=True)
class Rule:
    """pattern: a name in which `*` is one component: `blocks.*.attn.w_q`. init: read by `fresh` only."""

    pattern: str
    op: str
    init: str = "random"

    def claims(self, name: str) -> bool:
        """Whether the target tensor `name` is made by this rule."""
        return re.fullmatch(re.escape(self.pattern).replace(r"\*", r"[^.]+"), name) is not None
