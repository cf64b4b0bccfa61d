"""How people and scripts reach the daemon: one JSON API on a unix socket, its client, and the JSON shapes."""
