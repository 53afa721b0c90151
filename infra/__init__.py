"""Adapters: each outside library is known to one or two files here, and to nothing else.

What they implement is in `bam_core.protocols`; who joins them to pipelines is `pipelines.wiring`.
"""
