"""The recipe: one YAML file that says all that defines a result.

values.py    numbers as people write them            base.py            what every group of keys is
parts.py     the groups of keys: types, defaults     phases.py, mixtures.py   those under `phases`, `variants`
schema.py    the recipe as a whole                   document.py        YAML and `--set`, safely
checks.py    what must hold between keys             variant_checks.py  the same for `variants`
tuning.py    what a search sets in which stage       tune_checks.py     the same for `tune`
promotion.py what is asked before a promotion        promotion_checks.py the same for `promote`
overrides.py what one variant trains otherwise      matching_checks.py the same for whom it is made equal to
distil.py    cheaper attention for a trained variant, distil_checks.py the same for `distil`
layers.py    one document laid over another         extends.py         a recipe over what it extends
like.py      a variant over one that it is like     load.py            a name or a path to a `Recipe`
sources.py   where text comes from                  vocabulary.py      how many tokens a tokenizer has
imports.py   what was found where it imports from   import_checks.py   what must hold where it does
"""

from pipelines.recipe.load import find_recipe, load_recipe, recipe_from, recipe_with_imports, shipped_recipes
from pipelines.recipe.schema import Recipe, json_schema

__all__ = [
    "Recipe",
    "find_recipe",
    "json_schema",
    "load_recipe",
    "recipe_from",
    "recipe_with_imports",
    "shipped_recipes",
]
