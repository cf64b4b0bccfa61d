"""The trust methods: each supplies evidence, the host keys to expect of an agent."""
