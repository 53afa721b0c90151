"""Models of other people: their config.json and tensors as ours, and back.

    imported = read_checkpoint(folder)        # everything that is wrong at once, or a model that can be read
    write_imported(imported, out)             # our model folder, one tensor at a time
    FAMILIES["llama"].to_hf(config)           # the config.json of the way back
    FAMILIES["llama"].hf_tensors(config, imported.tensors)

To add a family: its fields and names in `sequential.py` or `parallel.py`, its row in `families.py`, its case in
`tests/oracles/families.py`. Reading order: `links`, `names`, `options`, `sequential`, `families`, `files`, `reading`,
`values`.
No library of the hub is used here, no code of a checkpoint is run, and nothing is unpickled.
"""

from bam_core.hf.families import FAMILIES, Family, find_family
from bam_core.hf.links import Link
from bam_core.hf.reading import OURS, Imported, read_checkpoint
from bam_core.hf.values import value_problems, write_imported

__all__ = [
    "FAMILIES",
    "OURS",
    "Family",
    "Imported",
    "Link",
    "find_family",
    "read_checkpoint",
    "value_problems",
    "write_imported",
]
