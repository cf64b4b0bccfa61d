"""Bytes between the registry and the agents: sockets, SSH packets, flow control, and fair shares of the loop."""
