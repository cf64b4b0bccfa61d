"""The asyncssh adapter: connections that are dialled with every safe option, and errors that become ours."""
