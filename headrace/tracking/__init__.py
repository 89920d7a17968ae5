"""MLflow: runs, the model registry, and what identifies a model version."""
