"""`bam init`: a first recipe for somebody's own text. Pure; the files are looked at in `pipelines/wiring/starting.py`.

found.py    what was found where a domain's text is     sizes.py    models of three sizes, and an imported one
choosing.py tokens, rows and the rest, from these       recipe.py   the recipe as a text with comments
"""
