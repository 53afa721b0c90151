"""What a model is worth: `perplexity` per domain on held-out text, `routing` of a mixture's experts per domain."""
