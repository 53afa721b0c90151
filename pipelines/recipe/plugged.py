"""Where a recipe may give a plug-in's name in the place of one of ours; that it is installed is said with the rest.

A plug-in's name has a point in it, so which of the two is meant shows from the name alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Tag, WithJsonSchema

from bam_core import plugins
from bam_core.config import Gate
from bam_core.upcycle.specs import MergeMethod
from pipelines.recipe.base import TAG
from pipelines.recipe.values import Text

OURS, PLUGGED = f"{TAG}ours", f"{TAG}plugged"


def _installed(group: str) -> Callable[[str], str]:
    def check(name: str) -> str:
        if not plugins.is_plugin_name(name):
            raise ValueError("must be a plug-in's name, which has a point in it: acme.sharp")
        for problem in plugins.problems("", group, name):
            raise ValueError(problem.expected + (f" ({problem.remedy})" if problem.remedy else ""))
        return name

    return check


def _whose(value: Any) -> str:
    return PLUGGED if plugins.is_plugin_name(value) else OURS


_SCHEMA = WithJsonSchema({"type": "string", "pattern": f"^{plugins.PATTERN}$"})

GateName = Annotated[
    Annotated[Gate, Tag(OURS)]
    | Annotated[Text, AfterValidator(_installed(plugins.ROUTING_RULES)), _SCHEMA, Tag(PLUGGED)],
    Discriminator(_whose),
]
MergeName = Annotated[
    Annotated[MergeMethod, Tag(OURS)]
    | Annotated[Text, AfterValidator(_installed(plugins.MERGE_RULES)), _SCHEMA, Tag(PLUGGED)],
    Discriminator(_whose),
]
MetricName = Annotated[Text, AfterValidator(_installed(plugins.METRICS)), _SCHEMA]
SourceName = Annotated[Text, AfterValidator(_installed(plugins.SOURCES)), _SCHEMA]
