"""`bam adopt`: experts of other teams."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bam_core.graph.key import key12
from pipelines.cli import text
from pipelines.cli.app import Session, with_session
from pipelines.cli.commands import Command

if TYPE_CHECKING:
    from pipelines.wiring import Adopted


@click.command(
    cls=Command,
    examples=("bam adopt law s3://other-team/bam#expert.law",),
)
@click.argument("name")
@click.argument("uri")
@click.option("--replace", is_flag=True, help="NAME is another expert already: from now on it is this one.")
@with_session
def adopt(session: Session, name: str, uri: str, replace: bool) -> None:
    """Take the expert at URI, which somebody else trained, as adopted.NAME.

    URI is an artifact's folder (of a store, or a copy of one) or STORE#REF, such as s3://bucket/bam#expert.law. It must
    have branched from a seed of this store. A recipe uses it by `domains.DOMAIN.expert: NAME`."""
    from pipelines import wiring

    adopted = wiring.adopt_expert(name, uri, session.settings(), replace=replace)
    record = adopted.record
    value = {
        "status": "adopted" if adopted.is_new else "already adopted",
        "name": name,
        "stage": record.stage,
        "key": record.key,
        "digest": record.digest,
        "origin": record.payload["config"]["origin"] | {"store": record.provenance["adopted_from"]},
        "seed": record.inputs["seed"].key,
        "size_bytes": adopted.size,
    }
    session.answer(value, lambda: _words(name, adopted))


def _words(name: str, adopted: Adopted) -> str:
    from bam_core.graph.adopted import origin_words

    record = adopted.record
    lines = [
        f"{record.stage}@{key12(record.key)}: {origin_words(record)}{'' if adopted.is_new else ', already adopted'}",
        f"  {len(record.outputs)} files, {text.size(adopted.size)}; its seed, tokenizer and config are those of "
        f"seed@{key12(record.inputs['seed'].key)}",
        f"  trained there on {text.count(record.metrics['train_tokens'])} tokens, "
        f"{text.count(record.metrics['train_flops'])} FLOPs",
        f"  in a recipe: domains.DOMAIN.expert: {name}",
    ]
    return "\n".join(lines)


COMMANDS = (adopt,)
