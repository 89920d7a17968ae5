"""Deliveries of events, in a process that the watchdog starts: to Prefect, to the addresses of `notify`, and to webhooks."""
