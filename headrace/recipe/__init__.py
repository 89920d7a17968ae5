"""The recipe: one typed tree, with the light tables of task types and models that it can name."""
