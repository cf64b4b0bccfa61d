"""A real docker-registry that stores its images on disk."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING

from lab.service import Service

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lab.namespaces import Machine


class Registry(Service):
    """docker-registry; what it stored is still there after a restart.

    `public_url` is the setting `http.host`: the registry uses it in every Location header, instead of the host that the
    client named. `secret` is `http.secret`, `storage` the folder of the images: registries with equal ones are one.
    """

    def __init__(  # noqa: PLR0913 - these are the settings of a registry
        self,
        machine: Machine | None,
        folder: Path,
        *,
        port: int = 5000,
        read_only: bool = False,
        public_url: str = "",
        secret: str = "lab",  # noqa: S107 - of the lab only
        storage: Path | None = None,
    ) -> None:
        super().__init__("registry", machine, port, folder)
        self._secret = secret
        self._storage = storage or folder / "images"
        self._read_only = read_only
        self._public_url = public_url

    @property
    def url(self) -> str:
        """The URL that clients on its own machine use."""
        return f"http://127.0.0.1:{self.port}"

    def _argv(self) -> Sequence[str]:
        settings = self._folder / "registry.json"  # JSON is YAML too
        settings.write_text(json.dumps(self._settings()))
        return ["docker-registry", "serve", str(settings)]

    def _settings(self) -> dict[str, object]:
        """See https://distribution.github.io/distribution/about/configuration/."""
        return {
            "version": 0.1,
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(self._storage)},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}, "readonly": {"enabled": self._read_only}},
            },
            "http": {"addr": f"127.0.0.1:{self.port}", "secret": self._secret}
            | ({"host": self._public_url} if self._public_url else {}),
        }

    def _answers(self) -> bool:
        try:
            return self._request("GET", "/v2/", timeout=2)[0] == http.HTTPStatus.OK
        except OSError:
            return False
