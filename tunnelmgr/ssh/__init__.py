"""The adapter to asyncssh: connections to agents with safe options, and asyncssh's errors translated to ours.

    `dial`: `DialPermit` ──▶ `Dialer.reach` (TCP, first bytes) ──▶ `DialPermit` ──▶ handshake ──▶ `SshConnection`

Rules, each with its reason:

- `known_hosts` is always the triple (keys, authorities, revoked): any other empty value falls back to files in the home
  directory, and None accepts every host.
- Only our own login keys are offered: without `client_keys`, asyncssh offers the keys in ~/.ssh and in an ssh-agent.
- No compression: by default asyncssh accepts zlib from a server that offers nothing else, and the server could send a
  decompression bomb.
- Only elliptic-curve key exchanges: a server decides when and how often keys are exchanged, and one exchange with 8192
  bits blocks the loop for 0.1 s.
- Text that an agent sent goes through `core.sanitize` before it becomes part of an error.
- Every type of host key is accepted in the negotiation, the expected types first: an unexpected machine then presents a
  key, which is reported as a mismatch and not as a failed negotiation.

`host_key_scan` reads the host key or certificate that an agent presents, and ends the connection before any login.
"""
