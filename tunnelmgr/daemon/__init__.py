"""The composition root: makes the parts of the daemon from a configuration, and runs them until it drains."""
