"""`[tracing]`: a collector that gets OpenTelemetry traces."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from tunnelmgr.config.collector_url import HTTP_PORTS, collector_url
from tunnelmgr.config.values import ExistingFile, SecretPath, Section


def _traces_url(url: str) -> str:
    """Check the URL of a collector of traces."""
    example = '"http://127.0.0.1:4318/v1/traces" or "https://host:4318/v1/traces"'
    place = collector_url(url, HTTP_PORTS, example)
    if place.path in {"", "/"}:
        raise ValueError(f"add the path at which the collector takes traces, usually /v1/traces: {example}")
    return url


class TracingConfig(Section):
    """`[tracing]`: where traces go (OTLP over HTTP), and the part of the requests that is traced, from 0 to 1."""

    url: Annotated[str, AfterValidator(_traces_url)]
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01
    ca_file: ExistingFile | None = None
    token_file: SecretPath | None = None

    @field_validator("ca_file")
    @classmethod
    def _only_with_tls(cls, value: object, before: ValidationInfo) -> object:
        if value and urlsplit(str(before.data.get("url", ""))).scheme == "http":
            raise ValueError("http has no TLS; write https, or leave this out")
        return value
