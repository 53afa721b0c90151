"""Licences of texts as their recipes state them, and what a card may say of a model that was made from those texts.

A recipe's statement is passed on, never judged: bam does not know what a text's licence means for a model's weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bam_core.card.markdown import one_line

NOT_STATED = "not stated"
SEVERAL = "see-data-licences"
"""The name of a licence that is none: the card's `data_licences` say it text by text."""

HUB_LICENCES = frozenset({
    *("afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bigcode-openrail-m", "bigscience-bloom-rail-1.0"),
    *("bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "c-uda"),
    *("cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0"),
    *("cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    *("cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0"),
    *("cdla-sharing-1.0", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "gfdl", "gpl", "gpl-2.0"),
    *("gpl-3.0", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl"),
    *("odc-by", "ofl-1.1", "openrail", "osl-3.0", "pddl", "postgresql", "unlicense", "wtfpl", "zlib"),
})  # fmt: skip
"""The identifiers that Hugging Face's hub takes; its own list also has licences of single models.
Source: huggingface/hub-docs, docs/hub/repositories-licenses.md."""

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")
"""What an SPDX identifier looks like: no spaces."""


def combined(licences: Sequence[str | None]) -> dict[str, str]:
    """The front matter's `license`, and `license_name` where the hub knows no identifier for it.

    licences: of all texts behind a model, None where none was stated. One for all gives that one; several, or one that
    only some texts state, give `other`; none at all gives `unknown`.
    """
    stated = {one_line(licence).lower() for licence in licences if licence is not None}
    if not stated:
        return {"license": "unknown"}
    if len(stated) > 1 or None in licences:
        return {"license": "other", "license_name": SEVERAL}
    (licence,) = stated
    if licence in HUB_LICENCES:
        return {"license": licence}
    return {"license": "other", "license_name": licence if _IDENTIFIER.fullmatch(licence) else SEVERAL}
