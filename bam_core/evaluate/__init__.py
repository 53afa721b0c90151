"""What a model is worth: `perplexity` per domain on held-out text, `routing` of a mixture's experts per domain.

`ensemble` scores the dense experts side by side, from what `perplexity` found for each.
"""
