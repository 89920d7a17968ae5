"""When requests run: the model's thread, batching, streams, and the watchdog."""
