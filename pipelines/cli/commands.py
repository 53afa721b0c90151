"""Commands and groups of them: a help text ends with examples, and a misspelt name gets the nearest one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from bam_core.errors import UsageError, nearest

_WORD = re.compile(r"""(?:[^\s'"]|'[^']*'|"[^"]*")+""")


class Command(click.Command):
    """examples: whole command lines, as they can be typed."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        if not self.examples:
            return
        with formatter.section("Examples"):
            indent = " " * formatter.current_indent
            for example in self.examples:
                for line in folded(example, formatter.width - len(indent)):
                    formatter.write(f"{indent}{line}\n")


def folded(line: str, width: int) -> Iterator[str]:
    """A command line that is too long goes on in the next, so that what is copied still runs."""
    if len(line) <= width:
        yield line
        return
    taken = ""
    for part in _parts(line):
        if taken and len(taken) + len(part) + 3 > width:
            yield f"{taken} \\"
            taken = f"    {part}"
        else:
            taken = f"{taken} {part}" if taken else part
    yield taken


def _parts(line: str) -> list[str]:
    """Its words; an option with its value."""
    parts: list[str] = []
    for word in _WORD.findall(line):
        if parts and parts[-1].startswith("-") and " " not in parts[-1] and not word.startswith("-"):
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    return parts


class Commands(Command, click.Group):
    """Commands by name. sections: title -> names, in the order of the help; without them, in the order of adding."""

    command_class = Command

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]] | None = None, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.sections = sections or {}

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise UsageError(
                f"no command {args[0]!r}: {nearest(args[0], self.commands)} (`{context.command_path} --help`)"
            )
        return super().resolve_command(context, args)

    def list_commands(self, context: click.Context) -> list[str]:
        return [name for names in self._by_section().values() for name in names]

    def _by_section(self) -> dict[str, list[str]]:
        """Those that are there; what is in no section comes last."""
        found = {title: [name for name in names if name in self.commands] for title, names in self.sections.items()}
        listed = {name for names in found.values() for name in names}
        return {**found, "Commands": [name for name in self.commands if name not in listed]}

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """A list for each section; the first sentence of each command, whole."""
        shown = {name: command for name, command in self.commands.items() if not command.hidden}
        width = max(map(len, shown), default=0)
        for title, names in self._by_section().items():
            rows = [(f"{name:<{width}}", shown[name].get_short_help_str(limit=1000)) for name in names if name in shown]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
