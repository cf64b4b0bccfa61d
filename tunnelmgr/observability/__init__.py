"""What the daemon tells about itself: metrics, the audit log, and the messages to systemd."""
