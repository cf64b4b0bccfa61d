"""What the daemon reports: metrics, the audit log, and its state to systemd."""
