"""How good a model is, and whether it is better than another: metrics, plots, the gate and its paired tests. Pure functions."""
