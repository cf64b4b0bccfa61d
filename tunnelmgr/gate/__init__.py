"""The gate: an HTTP proxy for the OCI distribution API that applies the policy of an agent's group to every request.

Theory of operation
===================

The path of one request, with the file of each step::

    agent's client
      | TCP to the agent's listener, which its sshd forwards as an SSH channel
      v
    Gate.serve           gate.py               one session for each channel; errors end here
      v
    Session              session.py            waits for a request, reads its head, records it
      |                  in_flight.py          the requests that are served now
      |                  request_trace.py      the stages of those that are traced
      v                  head_parser.py        parses the head strictly
    RequestHandler       request_handler.py    classifies (core/oci.py), decides (core/policy.py)
      |                                        replies itself: identity.py, local_reply.py, catalog.py
      |-- group_limiter.py                     the group's limits: requests wait (turns.py), bodies slow down
      |                                        (paced_channel.py)
      |-- cached_pulls.py                      pulls by digest from the cache, once holdings.py confirms them
      |-- shared_requests.py                   short requests that many agents send: asked once, by registry_pool.py
      |                                       each in the registry holds a slot: registry_slot.py
      |-- PushHandler    push.py               uploads (uploads.py), protected tags, mounts
      |-- DeleteHandler  delete.py             protected tags and their manifests
      v
    Exchange             exchange.py           forwards the request and its body, then the response and its body
      |                  bodies.py, head_encoder.py, location_rewrite.py
      |                  registry_queries.py   the gate's own requests: pages, and what a tag points to
      v
    RegistryConnection   registry_connection.py  one for each channel and registry, kept between requests
      |                  connected_registry.py   pushes and deletes may go to another registry than pulls
      v
    TargetSocket         target_socket.py      TCP to the registry

`relay.py` serves forwards of protocol `tcp`, which bypass all but `TargetSocket`. `registry_check.py` examines the
registry for `status` and `check`, `upload_check.py` whether the registries of a cluster's members are one.

States of a session
-------------------

::

    waiting --> reading --> deciding --> exchanging ---+
       |           |            |             |        |
       |           | invalid    | refused     | failed | done
       |           v            v             v        |
       |        replying <------+-------------+        |
       |           |   |                               |
       |           |   +--> draining --+               |
       |           v                   v               |
       |        recorded <-------------+---------------+
       |           |
       |           +--> waiting, if the channel can continue
       v           v
      ended <------+

- A session serves one request at a time. What an agent pipelines stays unread until then.
- `waiting` ends in `ended` if the agent closes its side, sends nothing for `idle` seconds, or the tunnel drains. A TLS
  handshake is replied to and not recorded.
- After a reply, the channel continues only if nothing of the request is unread. Otherwise the gate closes its direction
  and discards what still arrives (`draining`): TCP would reset the connection before the client has read the reply.
- A request that fails after its response has started gets no reply. The channel closes before the end of the response,
  by which the client notices that it is incomplete.

States of an exchange
---------------------

::

    shared request:          slot -> answer read whole -> response to the agent
    request without a body:  slot -> sent -> response head ----------+
    request with a body:     sending, while the response is awaited  |
                               | body ends      | early response     |
                               v                v                    v
                             response head    sending cancelled --> response head and body to the agent
                             awaited                               then both connections close

- A body goes out as it arrives; the gate never holds more than a few pieces of it. The exception is a manifest for a
  protected tag, which is read whole (4 MiB at most) to know its digest.
- `RegistryConnection` repeats a request once, if it is a GET or HEAD on a kept connection that the registry closed
  without a byte of response.

Invariants
----------

1. Strict parsing. A request that two parsers could interpret differently is refused with 400, and the channel ends.
   `head_parser.py` and `core/oci.py` have the rules.
2. The registry never receives bytes that were not checked: the head is written again from parsed parts, the framing of
   the body is the gate's own, and the location of an upload comes from the registry itself.
3. Nothing that an agent sends ends in an exception outside of `Gate.serve`: it would close the agent's whole SSH
   connection, with all its channels.
4. A channel's connection to the registry never outlives it. Cancelling a session revokes it: both sides are aborted.
   Shared requests have connections of their own, on which nothing of an agent's is ever sent but a checked head.
5. The policy is looked up for every request, so a reload applies to open channels too, including one that moves
   the agent to another group.
6. Every request that was classified or replied to leaves one record, under the group that it was decided for.
7. What many agents share is never staler than their own request would be: a shared request is sent after all of those
   that it answers have arrived; the cache serves a digest for a repository only within seconds of the registry's
   confirmation, and never across a delete through this gate.
8. An agent delays only itself: its bytes are read only when the registry takes them (backpressure), long loops have
   checkpoints, and `ConcurrencyLimit` bounds what it runs at once.

Order of waits
--------------

A request's turn within the group's limits comes first, then the place of a pull, then a manifest buffer
(`MAX_BUFFERED_MANIFESTS`) or a search, then a slot (`MAX_PENDING_REQUESTS`), then the registry, then the turns of a
body's pieces, which only time decides; so no cycle can form. All but the limits are counted for one agent. Nothing
waits for a tag lock.

Deadlines
---------

Seconds are the defaults of `Timeouts`; `deadline.py` measures those of a session.

=========================================  ==================  =========================================
The gate waits for                         at most             then
=========================================  ==================  =========================================
the first byte of a request                `idle`, 120 s       the channel ends
the end of its head                        `head`, 10 s        400, the channel ends
more of its body                           `body`, 60 s        400, the channel ends
a turn within the group's limits           240 s               429; a body waits as long as it takes
a slot in the registry                     `response`, 300 s   503
a TCP connection to the registry           5 s                 503
the registry to take data                  `response`, 300 s   503
the head of a response, after the request  `response`, 300 s   503
progress of a response's body              `response`, 300 s   the channel ends
an agent to take a reply                   `response`, 300 s   the channel ends
the remaining bytes of a refused body      `drain`, 5 s        the channel ends, also after 1 MiB
names for a page of the catalog            5 s                 the page so far, 503 if it is empty
protected tags, before a delete            `search`, 30 s      503, and nothing is deleted
room for the agent's records               the log decides     the next request is read
room for a manifest in memory              no deadline         waits only for the agent's own requests
=========================================  ==================  =========================================

Tag locks
---------

Whether a protected tag may be written depends on what the registry has, so it takes two requests: a query, and then the
write. A lock keeps other requests through this gate from coming between them.

- A push to a protected tag locks the tag for the manifest's digest, and the digest for tagging. Pushes of the same
  manifest hold both locks together, since either may come first.
- A delete by digest locks the digest for deleting.
- A request that finds a lock with another purpose is refused at once; it never waits.

Uploads
-------

The location of an upload is chosen by the registry, which puts its own state there. The agent gets another one with an
id that cannot be guessed, the registry's location, and a proof that binds both to the agent, so that the gate need not
remember uploads and a restart of the controller does not end them: `UploadProofs`.
"""
