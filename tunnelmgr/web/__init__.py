"""What the daemon shows over HTTP without changing anything: the status page, health and metrics.

The same routes are on the listener of `controller.metrics` (TCP, read-only) and on the unix socket (beside the API).
"""
