"""Events: what happened to a model, kept on disk until the watchdog's deliveries have passed them on."""
