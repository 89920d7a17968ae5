"""Training: `train_model` goes from prepared rows to weights; `loop` is the part worth reading first."""
