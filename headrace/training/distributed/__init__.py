"""Training by one process or by several: DDP, FSDP, and how the processes are started."""
