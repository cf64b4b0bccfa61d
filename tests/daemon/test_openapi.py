"""The running daemon answers as its OpenAPI document says: schemathesis makes requests from it, and checks."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.daemon.conftest import Site
from tests.daemon.running_daemon import daemon

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)
"""Without `positive_data_acceptance`, since the document cannot say what a valid key or a valid configuration is, and
`negative_data_rejection`, since empty parameters are ignored, as an HTML form sends them."""


async def test_schemathesis_finds_no_answer_that_differs_from_the_document(site: Site) -> None:
    """Valid and invalid requests of each operation get documented statuses and shapes, and never an error of ours."""
    async with daemon(site) as process, over_tcp(site.socket) as url:
        await process.phase("up")
        words = ["run", f"{url}/v1/openapi.json", "--checks", ",".join(CHECKS), "--max-examples", "20"]
        words += ["--phases", "examples,coverage,fuzzing", "--seed", "1", "--exclude-path", "/v1/events"]
        run = await asyncio.create_subprocess_exec(
            Path(sys.executable).parent / "schemathesis",
            *words,
            cwd=site.folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(run.communicate(), 120)

        assert run.returncode == 0, output.decode()
        assert b"No issues found" in output or b"passed" in output, output.decode()
        assert (await process.phase("up"))["phase"] == "up"


@asynccontextmanager
async def over_tcp(socket: Path) -> AsyncIterator[str]:
    """Offer a unix socket on a loopback port, because schemathesis speaks HTTP over TCP only."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(socket)
        async with asyncio.TaskGroup() as both:
            both.create_task(copy(reader, back), name="request")
            both.create_task(copy(there, writer), name="answer")

    async with await asyncio.start_server(carry, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy bytes until the end."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()
