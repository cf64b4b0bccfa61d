"""The control API of the daemon: HTTP and JSON on a unix socket, its client, and the JSON shapes."""
