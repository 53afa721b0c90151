"""A sentencepiece model as a `tokenizer.json`: the same ids for every text that it keeps whole.

What a model needs for that is what `bam_core.data.tokenize.Tokenizer` asks of any: a piece for each byte, and a
normaliser that changes nothing. White space is kept as it is, where sentencepiece may have been told to merge it. In a
Unigram model, whose vocabulary holds the control tokens as text, a cut behind their first character keeps them from
being read out of a text; sentencepiece does not read them either. Where a model puts a space in front of a text, it is
also put behind its user-defined symbols, which sentencepiece does not do.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bam_core.data.tokenize import SPACE_MARK
from bam_core.errors import UsageError, install_extra

NEEDS = f"its packages are an extra: {install_extra('sentencepiece')}"
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""Types of pieces in sentencepiece's format."""
ANY_BYTE = "<0x[0-9A-F]{2}>"


def tokenizer_json(path: Path) -> str:
    """Raises UsageError for a file that is no such model, and where the libraries are not installed."""
    try:
        from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
        from transformers.convert_slow_tokenizer import SentencePieceExtractor, SpmConverter
    except ImportError as error:
        raise UsageError(f"tokenizer.path: {path}: {NEEDS} ({error})") from error
    convert: Any = SpmConverter  # as `extract`, its types are not what it takes
    try:
        extractor = SentencePieceExtractor(str(path))
        found: Any = extractor.extract(None)
        proto = extractor.proto
        made = convert.build_tokenizer_from_spm_proto(proto, found["vocab"], found.get("merges"))
    except ImportError as error:
        raise UsageError(f"tokenizer.path: {path}: {NEEDS} ({error})") from error
    except Exception as error:  # whatever the protobuf and the libraries make of a wrong file
        raise UsageError(
            f"tokenizer.path: {path}: is no sentencepiece model: {error or type(error).__name__}"
        ) from error
    if made is None or not proto.pieces:
        raise UsageError(f"tokenizer.path: {path}: is no sentencepiece model of pieces (BPE or Unigram)")
    if proto.normalizer_spec.add_dummy_prefix:
        made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE_MARK), made.normalizer])
        made.decoder = decoders.Sequence([made.decoder, decoders.Strip(" ", 1, 0)])
    of_type = {kind: [p.piece for p in proto.pieces if p.type == kind] for kind in (UNKNOWN, CONTROL, USER_DEFINED)}
    special = [*of_type[UNKNOWN], *of_type[CONTROL]]
    if isinstance(found["vocab"], list):
        rest = "|".join([*(re.escape(piece[1:]) for piece in special if len(piece) > 1), ANY_BYTE[1:]])
        starts = "".join(sorted({re.escape(piece[0]) for piece in [*special, "<"]}))
        made.pre_tokenizer = pre_tokenizers.Split(Regex(f"[{starts}](?={rest})"), "isolated")
    made.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    made.add_tokens([AddedToken(piece, normalized=False) for piece in of_type[USER_DEFINED]])
    return str(made.to_str(pretty=True))
