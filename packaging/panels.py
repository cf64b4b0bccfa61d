"""The panels of the Grafana dashboard as plain values, which dashboard.py builds.

A panel that does not say otherwise shows lines over time.
"""

from dataclasses import dataclass

SELECTED = 'group=~"$group", instance=~"$instance"'
HERE = 'instance=~"$instance"'


@dataclass(frozen=True)
class Query:
    """An expression, and the name of its series, with labels in braces; `exemplars` shows traces beside the lines."""

    expression: str
    legend: str = ""
    exemplars: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines over time; `stacked` if their sum means something. `unit` is one of Grafana's."""

    title: str
    queries: tuple[Query, ...]
    description: str
    unit: str = "short"
    stacked: bool = False


@dataclass(frozen=True)
class Figure:
    """One number as it is now; red at `bad` and above, or below `good` if that is given."""

    title: str
    query: Query
    description: str
    unit: str = "short"
    bad: float | None = None
    good: float | None = None


def rate(metric: str, by: str, labels: str = SELECTED) -> str:
    """Return the sum of a counter's rates."""
    return f"sum by ({by}) (rate({metric}{{{labels}}}[$__rate_interval]))"


def quantiles(
    histogram: str, by: str, *percent: int, labels: str = SELECTED, exemplars: bool = False
) -> tuple[Query, ...]:
    """Return the queries for quantiles of a histogram."""
    buckets = rate(f"{histogram}_bucket", f"{by}, le", labels)
    return tuple(
        Query(f"histogram_quantile({value / 100}, {buckets})", f"{{{{{by}}}}} p{value}", exemplars) for value in percent
    )


def requests(by: str, labels: str = "") -> str:
    """Return the rate of requests; probes are not what a user asks for."""
    return rate("tunnelmgr_requests_total", by, f'{SELECTED}, action!="well-known"{labels}')


FIGURES = (
    Figure(
        "Agents up",
        Query(f'sum(tunnelmgr_agents{{phase="up", {SELECTED}}})'),
        "Agents whose registry is reachable: a probe has come back.",
    ),
    Figure(
        "Without tunnel",
        Query(f'sum(tunnelmgr_agents{{phase=~"down|connecting|awaiting-identity", {SELECTED}}})'),
        "A few are always booting.",
    ),
    Figure(
        "Quarantined",
        Query(f'sum(tunnelmgr_agents{{phase="quarantined", {SELECTED}}})'),
        "Refused until an operator releases them.",
        bad=1,
    ),
    Figure(
        "Registries answer",
        Query(f"min(tunnelmgr_registry_reachable{{{HERE}}})"),
        "1 if every registry of every controller answers.",
        unit="bool_yes_no",
        good=1,
    ),
    Figure(
        "Sources that fail",
        Query(f"count(tunnelmgr_source_ok{{{HERE}}} == 0) or vector(0)"),
        "Sources whose last answer was not complete.",
        bad=1,
    ),
    Figure(
        "State and audit written",
        Query(f"min(tunnelmgr_state_ok{{{HERE}}} * on (instance) tunnelmgr_audit_ok)"),
        "1 if every controller can write both.",
        unit="bool_yes_no",
        good=1,
    ),
    Figure(
        "Fast path",
        Query(f"min(tunnelmgr_fast_path_active{{{HERE}}})"),
        "1 if bulk data bypasses asyncssh's packet code everywhere.",
        unit="bool_on_off",
        good=1,
    ),
    Figure(
        "Versions",
        Query(f"count by (version) (tunnelmgr_build_info{{{HERE}}})", "{{version}}"),
        "Controllers of each version.",
    ),
)
AGENTS = (
    Panel(
        "Agents",
        (Query(f"sum by (phase) (tunnelmgr_agents{{{SELECTED}}})", "{{phase}}"),),
        "Agents that are present, by phase.",
        stacked=True,
    ),
    Panel(
        "Time to the first tunnel",
        quantiles("tunnelmgr_time_to_up_seconds", "group", 50, 90),
        "From an agent's appearance in its source to its first tunnel. The script on agents waits for 120 s.",
        unit="s",
    ),
    Panel(
        "Ended tunnels",
        (
            Query(
                f'sum by (code) (increase(tunnelmgr_tunnels_ended_total{{phase="up", {SELECTED}}}[$__rate_interval]))',
                "{{code}}",
            ),
        ),
        "Tunnels that ended while up, by the error's code; `closed` is on request. All others are dialled again.",
        stacked=True,
    ),
    Panel(
        "Failed dials",
        (
            Query(
                "sum by (code) (increase(tunnelmgr_tunnels_ended_total"
                f'{{phase="connecting", {SELECTED}}}[$__rate_interval]))',
                "{{code}}",
            ),
        ),
        "Dials that ended before a tunnel was up, by the error's code.",
        stacked=True,
    ),
    Panel(
        "Agents that listings lack",
        (Query(f"max by (source) (tunnelmgr_source_missing_agents{{{HERE}}})", "{{source}}"),),
        "Agents that the last listing of their source lacked, and that stay for now.",
    ),
    Panel(
        "Age of the last complete answer",
        (
            Query(
                f"time() - max by (source) (tunnelmgr_source_last_success_timestamp_seconds{{{HERE}}})",
                "{{source}}",
            ),
        ),
        "By source. It alternates between zero and the source's `poll`.",
        unit="s",
    ),
    Panel(
        "Agents with a powerful key",
        (Query(f"sum by (group) (tunnelmgr_agents_with_powerful_key{{{SELECTED}}})", "{{group}}"),),
        "Agents on which the login key could do more than a tunnel needs.",
    ),
)
TUNNELS = (
    Panel(
        "Dial",
        quantiles("tunnelmgr_dial_duration_seconds", "group", 50, 95),
        "From the admission of a dial to the login: TCP, handshake, host key, authentication.",
        unit="s",
    ),
    Panel(
        "Probe",
        quantiles("tunnelmgr_probe_duration_seconds", "group", 50, 95),
        "The time of a probe through the agent's own listener to the gate.",
        unit="s",
    ),
    Panel(
        "Dials that wait",
        (
            Query(f"sum by (to) (tunnelmgr_dials_waiting{{{HERE}}})", "to {{to}}"),
            Query(f"sum(tunnelmgr_dials_in_progress{{{HERE}}})", "in progress"),
        ),
        "Dials and host key scans that wait to connect or to compute a handshake, and those that were admitted.",
    ),
    Panel(
        "Open channels",
        (Query(f"sum by (group) (tunnelmgr_channels{{{SELECTED}}})", "{{group}}"),),
        "Streams of clients on agents.",
        stacked=True,
    ),
)
TRAFFIC = (
    Panel(
        "Bytes",
        (Query(rate("tunnelmgr_bytes_total", "group, direction"), "{{group}} {{direction}}"),),
        "`to_agent` are pulls, `from_agent` pushes.",
        unit="Bps",
    ),
    Panel(
        "Requests",
        (Query(requests("action"), "{{action}}"),),
        "Requests through the gate, without probes.",
        unit="reqps",
        stacked=True,
    ),
    Panel(
        "Latency of requests",
        quantiles("tunnelmgr_request_latency_seconds", "action", 50, 95, labels=HERE, exemplars=True),
        "To the start of the response: gate, registry, a wait within a limit, and for a push its body.",
        unit="s",
    ),
    Panel(
        "Duration of requests",
        quantiles("tunnelmgr_request_duration_seconds", "action", 50, 95, labels=HERE, exemplars=True),
        "To the end of the response: for a layer, also its transfer.",
        unit="s",
    ),
    Panel(
        "Refusals",
        (Query(requests("group", ', verdict!="allowed"'), "{{group}}"),),
        "Requests that the policy refused, or that were malformed.",
        unit="reqps",
    ),
    Panel(
        "Server errors",
        (Query(requests("group, status", ', status=~"5.."'), "{{group}} {{status}}"),),
        "Requests that got a 5xx: the registry failed, or does not answer.",
        unit="reqps",
    ),
    Panel(
        "Waiting within limits",
        (Query(f"sum by (group, limit) (tunnelmgr_limit_waiting{{{SELECTED}}})", "{{group}} {{limit}}"),),
        "Requests and transfers that wait for their turn within a limit of their group.",
    ),
    Panel(
        "Wait within limits",
        (Query(rate("tunnelmgr_limit_wait_seconds_total", "group, limit"), "{{group}} {{limit}}"),),
        "Seconds a second that requests and transfers have waited: how many waited on average.",
    ),
    Panel(
        "Refused within limits",
        (Query(rate("tunnelmgr_limit_refused_total", "group, limit"), "{{group}} {{limit}}"),),
        "Requests that had no turn in time, and got 429.",
        unit="reqps",
    ),
    Panel(
        "Cache: pulls",
        (Query(rate("tunnelmgr_cache_pulls_total", "result", HERE), "{{result}}"),),
        "Pulls by digest: from the cache (hit), fetched into it (miss), or left to the registry (bypass).",
        unit="reqps",
        stacked=True,
    ),
    Panel(
        "Cache: bytes",
        (
            Query(
                f"sum by (instance) (rate(tunnelmgr_cache_sent_bytes_total{{{HERE}}}[$__rate_interval]))",
                "{{instance}}",
            ),
        ),
        "Bytes a second that agents were sent from the cache.",
        unit="Bps",
    ),
    Panel(
        "Cache: fill level",
        (Query(f"tunnelmgr_cache_used_bytes{{{HERE}}} / tunnelmgr_cache_size_bytes", "{{instance}}"),),
        "The share of its size that is used.",
        unit="percentunit",
    ),
)
CONTROLLERS = (
    Panel(
        "Lag of the event loop",
        quantiles("tunnelmgr_loop_lag_seconds", "instance", 50, 99, labels=HERE),
        "How long every tunnel waits while other work uses the loop.",
        unit="s",
    ),
    Panel(
        "CPU",
        (Query(rate("process_cpu_seconds_total", "instance", f'job="tunnelmgr", {HERE}'), "{{instance}}"),),
        "Seconds of CPU time a second. The process uses one core, and little more.",
        unit="percentunit",
    ),
    Panel(
        "Memory",
        (Query(f'process_resident_memory_bytes{{job="tunnelmgr", {HERE}}}', "{{instance}}"),),
        "Resident memory.",
        unit="bytes",
    ),
    Panel(
        "Uptime",
        (Query(f"tunnelmgr_uptime_seconds{{{HERE}}}", "{{instance}}"),),
        "Since the start of each controller.",
        unit="s",
    ),
    Panel(
        "Members",
        (
            Query(f"max by (state) (tunnelmgr_members{{{HERE}}})", "{{state}}"),
            Query(f"max(tunnelmgr_members_with_other_rules{{{HERE}}})", "with other rules"),
            Query(f"max(tunnelmgr_registries_not_shared{{{HERE}}})", "pairs without a common registry"),
        ),
        "Of a cluster: members alive or dead, those with another configuration, and registries that are not one.",
    ),
    Panel(
        "Database",
        (Query(f"tunnelmgr_database_reachable{{{HERE}}}", "{{instance}}"),),
        "1 if the cluster's database answers this member.",
    ),
    Panel(
        "Lost audit entries",
        (Query(f"increase(tunnelmgr_audit_lost_total{{{HERE}}}[$__rate_interval])", "{{instance}}"),),
        "Entries that could not be written.",
    ),
    Panel(
        "Lost spans",
        (
            Query(
                f'increase(tunnelmgr_trace_spans_total{{result!="exported", {HERE}}}[$__rate_interval])',
                "{{instance}} {{result}}",
            ),
        ),
        "Spans that the collector of traces has not taken, or that were dropped while too many waited.",
    ),
    Panel(
        "Audit entries to be forwarded",
        (Query(f"tunnelmgr_audit_forward_behind{{{HERE}}}", "{{instance}} to {{destination}}"),),
        "Entries that a collector has not confirmed yet.",
    ),
)
ROWS = {"Agents": AGENTS, "Tunnels": TUNNELS, "Traffic": TRAFFIC, "Controllers": CONTROLLERS}
