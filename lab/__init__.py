"""A laboratory of real parts on one machine: network namespaces, OpenSSH, a Docker registry, stand-ins for the clouds.

`make demo` shows the product in it; the acceptance tests and the benchmarks run in it. It is not part of the product's
package. Nothing here listens on, or sends to, anything but loopback and namespaces that the lab itself makes and
removes.
"""
