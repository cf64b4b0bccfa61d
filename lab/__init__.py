"""A laboratory on one machine: network namespaces, OpenSSH, a Docker registry, stand-ins for the clouds, faults.

`make demo`, the acceptance tests and the benchmarks run in it. It is not part of the product's package. It uses only
loopback and namespaces that it makes and removes itself.
"""
