"""A real docker-registry that stores its images on disk, or in a bucket."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Self

from lab.s3.client import S3User
from lab.service import Service

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from subprocess import CompletedProcess

    from lab.namespaces import Machine


class Registry(Service):
    """docker-registry; what it stored is still there after a restart.

    `public_url` is the setting `http.host`: the registry uses it in every Location header, instead of the host that the
    client named. `secret` is `http.secret`, `storage` the folder of the images, or the user of a bucket: registries
    with an equal secret and equal storage are one. `cache_of` is the URL of another registry, of which this one is then
    a pull-through cache; that registry has to answer when this one starts.
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
        storage: Path | S3User | None = None,
        cache_of: str = "",
    ) -> None:
        super().__init__("registry", machine, port, folder)
        self._secret = secret
        self._storage = storage or folder / "images"
        self._read_only = read_only
        self._public_url = public_url
        self._cache_of = cache_of

    @property
    def url(self) -> str:
        """The URL that clients on its own machine use."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, environment: Mapping[str, str] | None = None) -> Self:
        """Start the process, with the credential for its bucket in its environment, and wait until it answers."""
        return super().start(self._credential() | dict(environment or {}))

    def collect_garbage(self, *options: str) -> CompletedProcess[str]:
        """Run `docker-registry garbage-collect` with this registry's settings, whether it runs or not."""
        argv = ["docker-registry", "garbage-collect", *options, self._write_settings()]
        return self._machine.run(argv, env=self._credential(), timeout=60)

    def _argv(self) -> Sequence[str]:
        return ["docker-registry", "serve", self._write_settings()]

    def _write_settings(self) -> str:
        settings = self._folder / "registry.json"  # JSON is YAML too
        settings.write_text(json.dumps(self._settings()))
        return str(settings)

    def _credential(self) -> dict[str, str]:
        return self._storage.environment if isinstance(self._storage, S3User) else {}

    def _driver(self) -> dict[str, object]:
        if isinstance(self._storage, S3User):
            return self._storage.storage()
        return {"filesystem": {"rootdirectory": str(self._storage)}}

    def _settings(self) -> dict[str, object]:
        """See https://distribution.github.io/distribution/about/configuration/."""
        return {
            "version": 0.1,
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {
                **self._driver(),
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}, "readonly": {"enabled": self._read_only}},
            },
            "http": {"addr": f"127.0.0.1:{self.port}", "secret": self._secret}
            | ({"host": self._public_url} if self._public_url else {}),
        } | ({"proxy": {"remoteurl": self._cache_of}} if self._cache_of else {})

    def _answers(self) -> bool:
        try:
            return self._request("GET", "/v2/", timeout=2)[0] == http.HTTPStatus.OK
        except OSError:
            return False
