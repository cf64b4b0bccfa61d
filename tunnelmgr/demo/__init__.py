"""A laboratory of real parts on one machine: network namespaces, OpenSSH, a Docker registry and an EC2 look-alike.

`tunnelmgr demo` shows the product in it, and the acceptance tests prove the product in it. Nothing here listens on, or
sends to, anything but loopback and namespaces that the lab itself makes and removes.
"""
