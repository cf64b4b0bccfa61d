"""`state export` and `state import`: backups of the state, and moving it to another machine."""

import json
from contextlib import closing
from pathlib import Path

from tests.cli.conftest import Run
from tests.store.test_archive import MEMORY
from tunnelmgr.core.persistence import Changes
from tunnelmgr.store.sqlite import SqliteStore, read_sqlite


def fill(config: Path) -> Path:
    """Store two agents and two seeds in the configuration's state, and return its file."""
    file = config.with_name("state.db")
    with closing(SqliteStore(file)) as store:
        store.write(Changes(tuple(MEMORY.records.values()), seeds=tuple(MEMORY.seeds.values())))
    return file


def test_an_export_is_imported_into_an_empty_state(run: Run, config: Path, tmp_path: Path) -> None:
    """What one state holds is in the other after an export and an import."""
    file, archive = fill(config), tmp_path / "backup.jsonl"
    exported = run("state", "export", archive, "-c", config)
    stored = read_sqlite(file)
    file.unlink()

    imported = run("state", "import", archive, "-c", config)

    assert (exported.exit_code, imported.exit_code) == (0, 0)
    assert exported.stdout == f"{archive}: 2 agents and 2 seeds exported\n"
    assert imported.stdout == "2 agents and 2 seeds imported\n"
    assert read_sqlite(file) == stored
    assert archive.stat().st_mode & 0o777 == 0o600


def test_without_a_file_the_archive_goes_to_stdout(run: Run, config: Path) -> None:
    """An export without FILE prints the archive and nothing else."""
    fill(config)

    result = run("state", "export", "-c", config)

    assert [*json.loads(result.stdout.splitlines()[-1])] == ["agents", "seeds", "sha256"]


def test_an_export_works_while_the_daemon_holds_the_state(run: Run, config: Path) -> None:
    """A backup needs no stop of the daemon."""
    file = fill(config)
    with closing(SqliteStore(file)):
        result = run("state", "export", "-c", config)

    assert result.exit_code == 0


def test_an_import_is_refused_while_the_daemon_holds_the_state(run: Run, config: Path, tmp_path: Path) -> None:
    """An import beside a running daemon is refused, because the daemon would not read it."""
    file, archive = fill(config), tmp_path / "backup.jsonl"
    run("state", "export", archive, "-c", config)
    with closing(SqliteStore(file)):
        result = run("state", "import", archive, "--replace", "-c", config)

    assert result.exit_code == 1
    assert "another tunnelmgr uses this state" in result.stderr


def test_an_import_does_not_replace_a_state_unless_it_is_asked_to(run: Run, config: Path, tmp_path: Path) -> None:
    """A state that is not empty is replaced with --replace only, and then as a whole."""
    file, archive = fill(config), tmp_path / "backup.jsonl"
    run("state", "export", archive, "-c", config)
    stored = read_sqlite(file)
    with closing(SqliteStore(file)) as store:
        store.write(Changes(forgotten=tuple(MEMORY.records), spent=tuple(MEMORY.seeds)))
        store.write(Changes(seeds=(MEMORY.seeds["one"],)))

    refused = run("state", "import", archive, "-c", config)
    replaced = run("state", "import", archive, "--replace", "--json", "-c", config)

    assert refused.exit_code == 1
    assert "it has 0 agents and 1 seed; replace them with --replace" in refused.stderr
    assert json.loads(replaced.stdout) == {"agents": 2, "seeds": 2}
    assert read_sqlite(file) == stored


def test_a_damaged_archive_changes_nothing(run: Run, config: Path, tmp_path: Path) -> None:
    """An archive that lacks its last line is refused before the state is opened for writing."""
    file, archive = fill(config), tmp_path / "backup.jsonl"
    run("state", "export", archive, "-c", config)
    archive.write_text("".join(archive.read_text().splitlines(keepends=True)[:-1]))
    stored = read_sqlite(file)

    result = run("state", "import", archive, "--replace", "-c", config)

    assert result.exit_code == 1
    assert f"{archive}: the archive is incomplete" in result.stderr
    assert read_sqlite(file) == stored


def test_an_export_that_cannot_be_written_leaves_the_last_one(run: Run, config: Path, tmp_path: Path) -> None:
    """An unwritable folder is an error that names the file."""
    fill(config)

    result = run("state", "export", tmp_path / "missing" / "backup.jsonl", "-c", config)

    assert result.exit_code == 1
    assert "cannot write the archive: No such file or directory" in result.stderr


def test_an_export_to_a_folder_keeps_the_newest_archives(run: Run, config: Path, tmp_path: Path) -> None:
    """With `--keep 2`, an export to a folder leaves its own archive, the newest of the others, and other files."""
    fill(config)
    folder = tmp_path / "backups"
    folder.mkdir()
    for name in ("state-20260101T000000Z.jsonl", "state-20260102T000000Z.jsonl", "state-before-the-move.jsonl"):
        (folder / name).touch()

    result = run("state", "export", folder, "--keep", "2", "-c", config)

    left = sorted(file.name for file in folder.iterdir())
    new = Path(result.stdout.split(":")[0])
    assert left == ["state-20260102T000000Z.jsonl", new.name, "state-before-the-move.jsonl"]
    assert json.loads(new.read_text().splitlines()[-1])["agents"] == 2
    assert new.stat().st_mode & 0o777 == 0o600


def test_an_export_that_fails_removes_no_archive(run: Run, config: Path, tmp_path: Path) -> None:
    """If there is no state to export, the archives in the folder stay."""
    old = [tmp_path / f"state-2026010{day}T000000Z.jsonl" for day in (1, 2)]
    for file in old:
        file.touch()

    result = run("state", "export", tmp_path, "--keep", "1", "-c", config)

    assert result.exit_code == 1
    assert all(file.exists() for file in old)


def test_keep_needs_a_folder(run: Run, config: Path, tmp_path: Path) -> None:
    """`--keep` with a file, or without one, is wrong usage."""
    for words in ((), (tmp_path / "backup.jsonl",)):
        result = run("state", "export", *words, "--keep", "2", "-c", config)
        assert result.exit_code == 2
        assert "--keep: it needs an existing folder" in result.stderr


def test_an_unreadable_archive_is_an_error_that_names_it(run: Run, config: Path, tmp_path: Path) -> None:
    """A missing archive, or one that is not text, is an error that names the file."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe")

    for file in (tmp_path / "missing", tmp_path / "binary"):
        result = run("state", "import", file, "-c", config)
        assert result.exit_code == 1
        assert f"{file}: cannot read the archive" in result.stderr
