"""Letting go of what an ended tunnel held, so that it is freed at once and not by the next full collection.

An exception holds its traceback, which holds the frames that it came through, which hold their local variables; where
one of these is the exception itself, as in `asyncio.TaskGroup.__aexit__`, all of it is a cycle. A tunnel's end is an
exception that came through the worker's frames, so all that they hold would stay: the worker, asyncssh's connection,
its buffers. Full collections are rare here, since each stops the loop (`daemon/garbage.py`).
"""

import traceback


def clear_exception_frames(error: BaseException) -> None:
    """Clear the local variables of the frames that an exception, and those behind it, came through, and drop these.

    Frames that still run are left alone (`traceback.clear_frames`). Whoever wants to log the traceback does so before.
    """
    behind: list[BaseException | None] = [error]
    seen: set[int] = set()
    while behind:
        one = behind.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        one.__traceback__ = None  # the frames that called these are not in it, and stay with their variables
        behind += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            behind += one.exceptions
