"""The results page: tables of a study beside the paper's numbers, each claim with its interval and a verdict.

Reading order: `tables` (from scores to rows and claims, pure), `page` (those as Markdown), `margins`, `markdown`.
"""
