"""Where members verify that their registries are one: their uploads, and the reports about them.

`core/registry_sharing.py` has the rules.
"""

from pathlib import Path
from typing import Final

from tunnelmgr.core.registry_sharing import CheckUpload, Sharing, SharingReport, SharingState
from tunnelmgr.store.database import Connection, Database

FORGOTTEN_SECONDS: Final = 3600.0
"""Seconds after which what a member has left behind is removed; a report is renewed more often."""
_FORGET: Final = """
WITH old AS (DELETE FROM registry_upload WHERE at < now() - make_interval(secs => %(age)s))
DELETE FROM registry_report WHERE member = %(me)s OR at < now() - make_interval(secs => %(age)s)
"""
_ANNOUNCE: Final = """
INSERT INTO registry_upload (writer, registry, id, location) VALUES (%s, %s, %s, %s)
ON CONFLICT (writer, registry) DO UPDATE SET id = excluded.id, location = excluded.location, at = now()
"""
_REPORT: Final = """
INSERT INTO registry_report (member, writer, registry, upload, sharing, error) VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (member, writer, registry) DO UPDATE SET
    upload = excluded.upload, sharing = excluded.sharing, error = excluded.error, at = now()
"""


class RegistryProofs:
    """One member's view of the uploads and the reports; every method blocks and raises StoreError."""

    def __init__(self, url: str, member: str, password_file: Path | None = None) -> None:
        self._database = Database(url, password_file)
        self._member = member

    def start_over(self) -> None:
        """Forget what an earlier process of this member has reported, and what lost members have left."""
        self._database.call(
            lambda connection: connection.execute(_FORGET, {"me": self._member, "age": FORGOTTEN_SECONDS})
        )

    def read(self) -> SharingState:
        """Return the uploads and the latest reports of all members."""

        def act(connection: Connection) -> SharingState:
            uploads = connection.execute(
                "SELECT id, writer, registry, location FROM registry_upload ORDER BY writer, registry"
            )
            reports = connection.execute(
                "SELECT member, writer, registry, upload, sharing, error FROM registry_report "
                "WHERE sharing = ANY(%s) ORDER BY member, writer, registry",
                (list(Sharing),),  # a newer version may have others
            )
            return SharingState(
                tuple(CheckUpload(**row) for row in uploads.fetchall()),
                tuple(SharingReport(**{**row, "sharing": Sharing(row["sharing"])}) for row in reports.fetchall()),
            )

        return self._database.call(act)

    def announce(self, upload: CheckUpload) -> None:
        """Show this member's upload in a registry to the other members, in place of the last one."""
        values = (upload.writer, upload.registry, upload.id, upload.location)
        self._database.call(lambda connection: connection.execute(_ANNOUNCE, values))

    def report(self, report: SharingReport) -> None:
        """Write a report in place of the last one about the same member and registry."""
        values = (report.member, report.writer, report.registry, report.upload, report.sharing.value, report.error)
        self._database.call(lambda connection: connection.execute(_REPORT, values))

    def close(self) -> None:
        """Close the connection."""
        self._database.close()
