"""Policy applied to each forwarded stream: one strict reading of a request, written anew for the registry."""
