"""A routing rule and a metric for bam."""
