"""Evaluation of models, as pure functions: metrics, plots, the release gate and its paired tests."""
