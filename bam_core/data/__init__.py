"""From documents to batches: equal text, seed and shares give equal rows, anywhere and after every resume.

Reading order: `text` (which documents, and which are for validation), `tokenize` (text to ids), `packing`
(ids to rows of equal length), `shards` (rows in memory-mapped files), `mixture` (which row comes next).
"""
