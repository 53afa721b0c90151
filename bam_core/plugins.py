"""What other distributions add by entry points: found by name, loaded when the name is used, never before.

A plug-in's name has a point in it (`acme.sharp`) and none of ours has one. So no name of ours, now or later, is ever a
plug-in's, a recipe shows what is not bam's, and what uses none never looks for one. A name that two distributions give,
or that cannot be loaded, is refused with words that name the distribution: who made it has to mend it.

docs/plugins.md says what each group's entry must be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

from bam_core.errors import BamError, Problem, UsageError, nearest

ROUTING_RULES = "bam.routing_rules"
MERGE_RULES = "bam.merge_rules"
VARIANTS = "bam.variants"
METRICS = "bam.metrics"
SOURCES = "bam.sources"

GROUPS: Mapping[str, str] = {
    ROUTING_RULES: "routing rule",
    MERGE_RULES: "merge rule",
    VARIANTS: "variant",
    METRICS: "metric",
    SOURCES: "kind of source",
}
"""Group of entry points -> what one of them is, in words."""

PATTERN = r"[a-z][a-z0-9_-]*(\.[a-z0-9_-]+)+"
"""Of a plug-in's name: `acme.sharp`; the first part says whose it is."""
_NAME = re.compile(PATTERN)


@dataclass(frozen=True)
class Plugin:
    """One entry point as its distribution declares it; nothing of it is imported. fault: why it cannot be used."""

    group: str
    name: str
    distribution: str
    version: str
    fault: str = ""

    @property
    def what(self) -> str:
        """`routing rule acme.sharp`."""
        return f"{GROUPS[self.group]} {self.name}"

    @property
    def origin(self) -> str:
        """`bam-acme 0.1`."""
        return f"{self.distribution} {self.version}".rstrip()

    def __str__(self) -> str:
        return f"{self.what} of {self.origin}"


def is_plugin_name(name: object) -> bool:
    """Whether a name can only be a plug-in's."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def installed() -> list[Plugin]:
    """All that is installed, by group and name, with what is wrong with it. Imports none of it."""
    return [plugin for group in GROUPS for found in _entries(group).values() for plugin in _judged(group, found)]


def problems(path: str, group: str, name: str) -> Iterator[Problem]:
    """What is wrong with the use of a plug-in's name at `path`, without importing it."""
    found = _entries(group).get(name)
    if found is None:  # it may have been installed since somebody looked, from a notebook
        _entries.cache_clear()
        found = _entries(group).get(name)
    if found is None:
        known = [f"{plugin.name} ({plugin.origin})" for plugin in installed() if plugin.group == group]
        close = nearest(name, _entries(group)) if known else "none is installed"
        remedy = close if close.startswith("did you mean") else f"installed: {', '.join(known)}" if known else close
        yield Problem(path, name, f"is a plug-in's {GROUPS[group]}, and no installed distribution has it", remedy)
        return
    plugin = _judged(group, found)[0]
    if plugin.fault:
        yield Problem(path, name, f"cannot be used: {plugin.fault}")


def find(group: str, name: str) -> Plugin:
    """The one plug-in of this name. Raises UsageError."""
    for problem in problems("", group, name):
        remedy = f" ({problem.remedy})" if problem.remedy else ""
        raise UsageError(f"{name!r} {problem.expected}{remedy}")
    return _judged(group, _entries(group)[name])[0]


def load(group: str, name: str, check: Callable[[Any], object]) -> Any:
    """Import a plug-in, once, and have it checked. check: raises if it is not what the group's entries must be.

    Raises UsageError, naming the distribution, for one that is not there, fails on import or does not pass.
    """
    if (group, name) not in _loaded:
        plugin = find(group, name)
        try:
            found = _entries(group)[name][0].load()
        except Exception as error:
            raise UsageError(f"{plugin} cannot be loaded: {_words(error)}; {_remedy(plugin)}") from error
        try:
            check(found)
        except Exception as error:
            raise UsageError(f"{plugin} is not what it must be: {_words(error)}; {_remedy(plugin)}") from error
        _loaded[group, name] = found
    return _loaded[group, name]


_loaded: dict[tuple[str, str], Any] = {}


def forget() -> None:
    """Look again at what is installed."""
    _entries.cache_clear()
    _loaded.clear()


Used = Mapping[str, Mapping[str, Mapping[str, str]]]
"""Group -> name -> {distribution, version}: what a stage's configuration, and so its key, says of plug-ins."""


def identity(plugins: Iterator[Plugin]) -> dict[str, dict[str, dict[str, str]]]:
    """As `Used`."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for plugin in plugins:
        entry = {"distribution": plugin.distribution, "version": plugin.version}
        found.setdefault(plugin.group, {})[plugin.name] = entry
    return found


def require_same(used: Used) -> None:
    """What was planned with is what is installed here. Raises BamError naming each one that is not."""
    wrong = []
    for group, names in used.items():
        for name, planned in names.items():
            here = find(group, name)
            if (here.distribution, here.version) != (planned["distribution"], planned["version"]):
                was = f"{planned['distribution']} {planned['version']}"
                wrong.append(f"{here.what}: planned with {was}, and here is {here.origin}")
    if wrong:
        raise BamError(f"{'; '.join(wrong)}; install the same one everywhere, or plan again")


@cache
def _entries(group: str) -> dict[str, tuple[metadata.EntryPoint, ...]]:
    """Name -> those who give it."""
    found: dict[str, tuple[metadata.EntryPoint, ...]] = {}
    for entry in sorted(metadata.entry_points(group=group), key=lambda entry: (entry.name, _origin(entry))):
        found[entry.name] = (*found.get(entry.name, ()), entry)
    return found


def _origin(entry: metadata.EntryPoint) -> tuple[str, str]:
    """Distribution and version; empty where its metadata is damaged."""
    if entry.dist is None:
        return "", ""
    read: Any = entry.dist.metadata  # its type has `get` from Python 3.12 on
    # With get: some readers of metadata (the backport, once imported, reads for all) raise where a key is missing.
    return read.get("Name") or "", read.get("Version") or ""


def _judged(group: str, entries: tuple[metadata.EntryPoint, ...]) -> list[Plugin]:
    found = [Plugin(group, entry.name, *_origin(entry)) for entry in entries]
    return [Plugin(p.group, p.name, p.distribution, p.version, _fault(p, found)) for p in found]


def _fault(plugin: Plugin, same_name: list[Plugin]) -> str:
    if not is_plugin_name(plugin.name):
        return (
            f"{plugin.origin} names it without a point, as only ours are named: "
            f"its {GROUPS[plugin.group]} must be called as `{_suggested(plugin)}` in {plugin.group}"
        )
    if len(same_name) > 1:
        return f"{' and '.join(p.origin for p in same_name)} both have it: uninstall one of them"
    if not plugin.distribution or not plugin.version:
        return "the metadata of its distribution is damaged: install it again"
    return ""


def _suggested(plugin: Plugin) -> str:
    owner = re.sub(r"[^a-z0-9_-]", "", plugin.distribution.lower()).removeprefix("bam-").lstrip("0123456789_-")
    return f"{owner or 'acme'}.{re.sub(r'[^a-z0-9_-]', '_', plugin.name.lower())}"


def _words(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if not isinstance(error, ValueError | BamError) else first


def _remedy(plugin: Plugin) -> str:
    return f"it is for {plugin.distribution} to mend: install another version of it, or do without"
