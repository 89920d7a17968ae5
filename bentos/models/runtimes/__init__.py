"""Inference servers made by others, which a replica starts for the models that they are made for."""
