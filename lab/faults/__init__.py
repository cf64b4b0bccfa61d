"""Fault injection: failing cloud API calls, lost and rejected packets, and machines that never answer."""
