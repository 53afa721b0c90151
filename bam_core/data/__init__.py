"""From documents to batches: equal text, seed and shares give equal rows, anywhere and after every resume.

Reading order: `fields` (what text a row stands for), `picking` (which rows are documents), `distinct` (each text once),
`near_copies` (likewise, of texts that are much alike), `text` (which documents, and which are for validation),
`tokenize` (text to ids), `words` (the same, each distinct piece once), `packing` (ids to rows of equal length),
`shards` (rows in memory-mapped files), `mixture` (which row comes next), `schedule` (likewise, where shares change),
`subset` (what is not trained on). Of text without labels `discover` makes domains: `tfidf` (documents as points),
`balanced` (clusters of equal weight).
"""
