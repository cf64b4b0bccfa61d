"""An S3 that authenticates: moto's on a machine of the lab, with a bucket and users who may do what policies say.

moto checks each request's signature and compares its action and resource with the user's policies, once `create` has
been called. Everything is in memory.
"""

from lab.s3.client import S3Service, S3User

__all__ = ["S3Service", "S3User"]
