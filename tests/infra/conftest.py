"""The S3 server of `s3_kit` for every module here that asks for it."""

from __future__ import annotations

from s3_kit import s3, s3_server

__all__ = ["s3", "s3_server"]
