"""Freeing what an exception's traceback keeps alive, so that an ended tunnel's memory is free at once.

An exception refers to its traceback, which refers to the frames that it passed through, which refer to their local
variables. If one of these is the exception itself, as in `asyncio.TaskGroup.__aexit__`, all of it is a reference cycle.
A tunnel ends by an exception that passed through the worker's frames, so everything they refer to would stay until a
full collection: the worker, asyncssh's connection, its buffers. Full collections are rare here, because each one stops
the loop (`daemon/garbage.py`).
"""

import traceback


def clear_exception_frames(error: BaseException) -> None:
    """Clear the local variables of all frames that an exception and its causes passed through, and drop the tracebacks.

    Running frames are not touched (`traceback.clear_frames`). Log the traceback before, if it is needed.
    """
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        one.__traceback__ = None  # the callers of these frames are not in it, and keep their variables
        pending += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            pending += one.exceptions
