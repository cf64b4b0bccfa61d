"""Load the configuration on stdin as the daemon would, and print all its problems in one line: exit status 2.

validate.py LABEL [FILE…] [credential:NAME…]: files and credentials that exist once the role has been applied. LABEL is
the file's future path.
"""

import os
import sys
import tempfile
from pathlib import Path

from tunnelmgr.config import load
from tunnelmgr.errors import ConfigError

label, *expected = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    credentials = Path(folder, "credentials")
    credentials.mkdir()
    for name in expected:
        if name.startswith("credential:"):
            (credentials / name.removeprefix("credential:")).touch()
    if any(credentials.iterdir()):
        os.environ["CREDENTIALS_DIRECTORY"] = str(credentials)
    file = Path(folder, "tunnelmgr.toml")
    file.write_bytes(sys.stdin.buffer.read())
    try:
        load(file)
    except ConfigError as invalid:
        missing = tuple(f"no such file: {name}" for name in expected)
        if problems := [problem for problem in invalid.problems if not problem.endswith(missing)]:
            print(f"{label}: {'; '.join(problems)}", file=sys.stderr)
            sys.exit(2)
