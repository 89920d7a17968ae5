"""Makes trained models smaller: quantised or shorter weights, pruned weights, smaller networks."""
