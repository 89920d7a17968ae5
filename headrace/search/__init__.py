"""Searches for better values of a recipe's fields: trials by the training engine, compared on validation rows, with Optuna."""
