"""Decisions, all of them pure: no clock, no I/O, no third party."""
