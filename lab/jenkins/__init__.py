"""What Jenkins does to an agent: the launch steps of three plugins, by their sources, and remoting's handshake.

The launchers use OpenSSH's clients against the agent's real sshd. The agent program is a stand-in for `remoting.jar`:
it is copied and started in the same way, and speaks the same handshake on stdin and stdout.
"""
