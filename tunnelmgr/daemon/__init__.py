"""The composition root: a configuration becomes objects, and the objects run until told to stop."""
