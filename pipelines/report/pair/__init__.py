"""Two runs beside each other on one page: `bam report A B`. A pure function of what the two left, as the report itself.

The runs are called A and B, in this order; a difference is B over A, less 1, so below 0 B has less.
Reading order: runs, words, chances, tables, build.
"""

from pipelines.report.pair.build import pair_page
from pipelines.report.pair.chances import Chances, chances
from pipelines.report.pair.runs import Made, Pair, RunLeft

__all__ = ["Chances", "Made", "Pair", "RunLeft", "chances", "pair_page"]
