"""Losses of twenty training steps of every variant, kept: a change that is not meant to change results changes none.

`python -m tests.golden` writes `losses.json` anew.
"""
