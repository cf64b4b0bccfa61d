"""`controller.state`: which places are accepted, and how a remote database is verified."""

import pytest

from tunnelmgr.config.state_url import state_url

VERIFIED = "sslrootcert=system&sslmode=verify-full"
READ_WRITE = "target_session_attrs=read-write"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////var/lib/tunnelmgr/state.db",
        "postgresql:///state",
        "postgresql:///state?host=/run/postgresql",
        "postgresql://tunnelmgr@localhost/state",
        "postgresql://tunnelmgr@127.0.0.1:5433/state",
        "postgresql://tunnelmgr@[::1]/state",
        "postgres://%2Frun%2Fpostgresql/state",
    ],
)
def test_a_file_and_a_database_on_this_machine_are_taken_as_they_are(url: str) -> None:
    """A SQLite file, a socket and a loopback address need no TLS."""
    assert state_url(url) == url


@pytest.mark.parametrize(
    ("url", "query"),
    [
        ("postgresql://tunnelmgr@db.example/state", VERIFIED),
        ("postgresql://tunnelmgr@db.example/state?sslmode=verify-full", VERIFIED),
        ("postgresql://tunnelmgr@10.0.0.5:5433/state", VERIFIED),
        ("postgresql://tunnelmgr@localhost,db.example/state", VERIFIED),
        ("postgresql://db-1:5432,db-2:5433/state?target_session_attrs=read-write", f"{VERIFIED}&{READ_WRITE}"),
        ("postgresql://[fd00::1]:5432,[fd00::2]:5432/state", VERIFIED),
        ("postgresql://localhost:5432,[fd00::2]:5432/state", VERIFIED),
        (
            "postgresql:///state?host=db-1,db-2&target_session_attrs=read-write",
            f"host=db-1%2Cdb-2&{VERIFIED}&{READ_WRITE}",
        ),
        ("postgresql://localhost/state?hostaddr=10.0.0.5", f"hostaddr=10.0.0.5&{VERIFIED}"),
        ("postgresql://h/state?sslrootcert=/etc/ca.pem", "sslrootcert=%2Fetc%2Fca.pem&sslmode=verify-full"),
    ],
)
def test_a_remote_database_is_verified(url: str, query: str) -> None:
    """A server that another machine could be is verified by its certificate and name."""
    place, _, found = state_url(url).partition("?")

    assert place == url.partition("?")[0]
    assert sorted(found.split("&")) == sorted(query.split("&"))


def test_a_host_from_the_environment_is_verified_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libpq takes the host from PGHOST if the URL names none."""
    monkeypatch.setenv("PGHOST", "db.example")

    assert state_url("postgresql:///state") == f"postgresql:///state?{VERIFIED}"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mysql://h/state", 'write "sqlite:'),
        ("sqlite://relative.db", 'write "sqlite:'),
        (7, 'write "sqlite:'),
        ("postgresql://me:secret@h/state", "must not hold a password"),
        ("postgresql://h/state?password=secret", "must not hold a password"),
        ("postgresql://h/state?sslkey=/etc/k&sslpassword=secret", "use an sslkey that has none"),
        ("postgresql://h/state?sslmode=require", "sslmode=require does not verify the server"),
        ("postgresql://h/state?sslmode=disable", "sslmode=disable does not verify the server"),
    ],
)
def test_a_place_that_would_not_be_safe_is_refused(url: object, why: str) -> None:
    """An unknown kind of store, a password in the file, and TLS without verification are refused with the reason."""
    with pytest.raises(ValueError, match=why) as refused:
        state_url(url)

    assert "secret" not in str(refused.value)
