"""One SSH connection an agent, its remote forwards, and the proof that they work."""
