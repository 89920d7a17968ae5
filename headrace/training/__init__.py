"""Trains models: `run.train_model` turns prepared rows into weights. Read `loop` first."""
