"""Text that every Python installation has, for runs without a download: domains that differ as real ones do.

`python_text` gives documentation and code, `licences` the prose of lawyers, `exercises` generated
mathematics. Each text depends on the bytes of installed files, or on a seed, and on nothing else: no path,
time or hash order enters it. Nothing is imported or run to get it.
"""
