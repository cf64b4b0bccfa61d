"""The data plane: bytes between sockets here and sockets on the agents, through SSH channels.

Theory of operation
===================

    to the agent (a pull)

    registry's   receive_into   ┌───────┐  seal   ┌────────┐  send   agent's
    socket      ──────────────▶ │ Batch │ ──────▶ │ sealed │ ──────▶ socket
    (Stream)                    └───────┘         │ packets│         (Stream)
        │        `Pump`, a step of the share      └────────┘            ▲
        │                                                               │ write, at the end of the step
        └── no fast path: a piece ──▶ asyncssh's channel ──────▶ `SshTransport`

    from the agent (a push)

    agent's      receive_into   ┌──────┐  `process_packets` ┌──────────────────┐  read    registry's
    socket      ──────────────▶ │ read │ ─────────────────▶ │ `ReceiveBuffer`  │ ───────▶ socket
    (Stream)                    │buffer│  data of channels  │ of the channel   │  (gate)
           `PacedReader`, a     └──────┘                    └──────────────────┘
           step of the share       └── all other messages ──▶ asyncssh ──▶ `ForwardedChannel`'s callbacks

One event loop carries the data of all agents. Nothing is read before there is room for it, so data waits in a
kernel's buffer, and finally at its sender.

Parts
-----
- `stream`: a TCP socket on the loop. `socket_options`: its kernel options. `half_open`: resets a connection that only
  the agent still has.
- `transport`: asyncssh's transport for one connection, and flow control for writers. It owns a `paced_reader`, which
  reads, and a `BulkSender` (`batches`), which sends batches.
- `channel`: one forwarded stream, as the gate sees it. `pump`: sends bulk data. `receive_buffer` and `receive_window`:
  what has been received.
- `ssh_packets`: packets as bytes, without I/O. `asyncssh_internals` (with `asyncssh_attributes`): sends and receives
  packets in an asyncssh connection's place. `fast_path`: decides whether that is allowed.
- `fair_queue`: shares of the loop's time. `exception_frames`: frees an ended tunnel's memory.

States
------
A connection: open ──`end`──▶ ended. It ends by an error, the agent's EOF, or `abort`; `revoke` before `abort` also
drops what the kernel has buffered. An ended connection blocks no writer: they return, and find their channels closed.

The reader: watching ──readable──▶ [queued ──▶] reading ──▶ watching, queued (whole packets remain), or resting (timer).

- *watching*: the loop reports the socket as readable.
- *queued*: `_read` waits in the fair queue; the socket is watched no longer than for a few reports.
- *resting*: the no-op budget is exhausted or answers pile up; nothing is read until the timer ends.

A pump waits for exactly one of: data from the source (`notify_readable`), the agent's window (`await_window`, which has
asyncssh call `resume_writing`), or an idle socket (`when_idle`). It ends when `done` is settled.

Sending
-------
- A `Batch` is a buffer of eight packet slots. The pump reads the source directly into the slots; `seal` frames and
  encrypts them in place; one `send` passes them to the kernel. The batch returns to the thread's pool when the kernel
  has taken its last byte (`notify_drained`).
- Sequence numbers, nonces and the window are counted before sealing (`account`), so that no nonce is used twice, even
  if something fails afterwards.
- A batch is sent only while the connection is idle (nothing is unsent): packets never overtake each other, and at most
  one batch per connection is in flight.
- A sole pump sends when 1/32 of the agent's initial window is open; several pumps on a connection wait for more, up to
  a whole batch, because small pieces would fill the socket's buffer.
- During bulk sends, input is read only after every fourth batch: it is mostly WINDOW_ADJUST, and many together cost
  little more than one. It is read at once if no batch was sent since, because the pump may be waiting for the window.
- What asyncssh writes within a step or an iteration of the loop is sent with one call.

Receiving
---------
asyncssh processes everything that it is given at once, and one read may hold thousands of messages. So a read is one
step of the agent's share: `process_packets` checks between messages whether the step is out of time, and what remains
is processed in a later step. The read size adapts to a CPU time of 0.3 to 1 ms. Messages without data are charged to
the connection's `NoOpBudget`, and data that channels carry is credited to it; without credit the reader rests. asyncssh
answers requests whether or not the answers are read, so nothing is read while 16 MiB are unsent.

Flow control
------------
Writers wait for three things: the agent's window, the socket (512 KiB unsent per connection), and the end of a key
exchange. asyncssh ignores `pause_writing` of its transport and buffers without bound what it is given during a key
exchange, which an agent may begin and never end. It reports neither; but what it sends, it writes to the transport
within the same call. So the transport compares the bytes that asyncssh was given (`expect`) with those it has written:
while some are missing, a key exchange is running, and writers wait.

In the other direction, an agent may send what its `ReceiveWindow` allows beyond what the gate has read: 256 KiB at
first, and up to 2 MiB while the window is used. Without the fast path asyncssh manages the window, and reading pauses
at 256 KiB unread.

The fast path
-------------
Everything that bypasses asyncssh is called the fast path. Correctness never depends on it:

- It is active only if `fast_path_status` finds a verified release and every attribute that `asyncssh_attributes`
  declares. A connection checks it once.
- It acts only while the connection is in exactly one known state: AES-GCM in that direction, no compression, no key
  exchange running or due, an open channel, whole packets. Otherwise `send_state` is None and `process_packets` passes
  everything to asyncssh.
- It leaves the connection as if asyncssh had done the work: nonces, sequence numbers, windows, and the bytes counted
  towards the next key exchange, which asyncssh begins itself.

So during a key exchange, pumps fall back to pieces through asyncssh, and continue with the new keys afterwards.

Fair shares
-----------
A batch, a read, and each step of a session are steps of their agent's `Share`; `fair_queue` has the order. A step takes
about half a millisecond, so an agent waits for one step of another, no matter how many are busy.

Memory bounds
-------------
Per connection: one batch in flight (257 KiB); 512 KiB unsent, and 32 KiB more per writing channel; 16 MiB of unread
answers, after which nothing more is read. Per channel: its receive window (at most 2 MiB), or 512 KiB if asyncssh
manages it. Per thread: one read buffer (296 KiB) and four free batches.

Reference cycles are broken when a connection ends (`SshTransport.end`, `Stream.abort`, `free_connection`,
`clear_exception_frames`), so that its memory is free at once: full garbage collections are rare (`daemon/garbage.py`).
"""
