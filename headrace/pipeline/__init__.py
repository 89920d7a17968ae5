"""What dvc.yaml runs: the stages from data to an evaluated model, and DVC as the build system."""
