"""One SSH connection per agent, its remote forwards, and the proof that they work.

    `Supervisor.open` ──▶ `Worker.run`:

    dial ──▶ bind every listener ──▶ probe ──▶ wait ──▶ probe ──▶ …  ──▶ lost (raises) or drained (returns)

A worker runs one life of a tunnel and never retries. It reports `TunnelDialled`, `TunnelBound` and `TunnelProbed`, and
the supervisor reports `TunnelEnded`, all to the `EventSink` in its settings. When to try again is decided by the core,
from the error's pace and the number of failures. Each life has a number, and reports of earlier lives are ignored.

- Before it dials, a worker waits for a place, and before the handshake for a slot (`admission`).
- `Listeners` requests every address of every forward. The first address of a forward must be granted; if it is refused
  and a lost connection may still hold it, that connection is reset and the address requested again. Other addresses are
  requested again after each probe. A listener that sshd opens beyond loopback ends the tunnel.
- `Prober` sends a request through each forward's first listener and back to the gate, whose answer proves the whole
  path (`proof`). Only that makes a tunnel up, and keeps it up.
- `Sessions` admits the channels that the agent opens, up to a limit, and serves each in a task by `ChannelHandler`,
  which is the way to the gate.
- A drain closes the listeners, ends the channels that wait for a request, and gives the others until the deadline.
  Cancelling `Worker.run` ends everything at once.
"""
