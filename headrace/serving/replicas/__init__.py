"""Where replicas run: local processes under supervisord, or Docker containers."""
