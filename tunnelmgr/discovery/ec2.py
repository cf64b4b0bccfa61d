"""EC2 instances as agents, in any number of regions.

Rules:
- EC2 lists a terminated instance for about an hour, so the state decides, not the listing.
- If a region fails, its agents stay, and the snapshot is marked as incomplete.
- A `pending` instance is not an agent yet; every state after `running` is the end of the agent.
  https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-lifecycle.html
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from botocore.exceptions import ClientError
from pydantic import AfterValidator, Field

from tunnelmgr.config import SourceConfig, TrustOrder
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import Method
from tunnelmgr.discovery.aws_clients import AwsClients, AwsError, aws_error_text
from tunnelmgr.discovery.sqs import SqsQueue
from tunnelmgr.errors import DiscoveryError, HostKeyUnknownError
from tunnelmgr.threads import each

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mypy_boto3_ec2.type_defs import FilterTypeDef, InstanceTypeDef

PAGE = 1000
"""The maximum of DescribeInstances; fewer calls are throttled less."""
FILTER_VALUES = 100
"""Ids in one filter; DescribeInstances refuses more than 200 values."""
NO_LATEST = frozenset({"UnsupportedOperation", "InvalidParameterCombination"})
WHOLE_CONSOLE = 60_000
"""Bytes of console output up to which its beginning cannot be missing.

EC2 returns only the last 64 KB (GetConsoleOutput in the EC2 API Reference), and does not say whether these are 65,536
or 64,000 bytes. A program that scrolls the true block away and prints another one leaves a full console, even if it
also prints the first lines of a boot; so only a console that is clearly not full is evidence.
"""
ENDED = frozenset({"shutting-down", "terminated", "stopping", "stopped"})


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError('write a URL such as "https://…"')
    return value


Url = Annotated[str, AfterValidator(_url)]


class Ec2Config(SourceConfig):
    """`type = "ec2"`."""

    trust: TrustOrder = Field(default=[Method.CONSOLE])
    regions: Annotated[list[Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]], Field(min_length=1)]
    filters: dict[str, list[str]] = Field(default={})
    address: Literal["private", "public"] = "private"
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    role: Annotated[str, Field(pattern=r"^arn:")] | None = None
    endpoint_url: Url | None = None
    events_queue: Url | None = None

    def exclusive(self) -> dict[str, str]:
        """Return the queue, because each of its messages reaches one reader only."""
        return {} if self.events_queue is None else {"events_queue": self.events_queue}


@dataclass(slots=True)
class _Region:
    """The answer of one region."""

    region: str
    agents: set[Agent] = field(default_factory=set)
    gone: set[AgentId] = field(default_factory=set)
    failure: str | None = None


class Ec2Source:
    """Lists the instances that match the filters, in each region."""

    Config = Ec2Config

    def __init__(self, config: Ec2Config) -> None:
        self.config = config
        self._clients = AwsClients(role=config.role, endpoint_url=config.endpoint_url)
        self._region_of: dict[AgentId, str] = {}

    def discover(self) -> Snapshot:
        """Return the answers of all regions as one snapshot.

        Raises DiscoveryError if no region answered.
        """
        answers = each(self._ask, self.config.regions)
        failures = tuple(answer.failure for answer in answers if answer.failure)
        if len(failures) == len(answers) and not any(answer.agents or answer.gone for answer in answers):
            raise DiscoveryError(self.config.name, "; ".join(failures))
        agents = {agent.id: agent for answer in answers for agent in answer.agents}
        known = {} if not failures else self._region_of
        self._region_of = known | {agent.id: answer.region for answer in answers for agent in answer.agents}
        gone = frozenset[AgentId]().union(*(answer.gone for answer in answers))
        return Snapshot(frozenset(agents.values()), gone - agents.keys(), failures)

    def find_by_id(self, agents: Sequence[Agent]) -> Snapshot:
        """Return the state of agents that the listing lacks.

        They are requested first with the configured filters, which decide what belongs to the source, and those not
        found then without the filters. EC2 describes terminated instances for about an hour. The ids are in a filter,
        because one unknown id in `InstanceIds` fails the whole call with InvalidInstanceID.NotFound.
        """
        found = self._described([agent.incarnation for agent in agents], self._filters())
        there = {agent.id for agent in found.agents}
        others = {agent.id: agent for agent in agents if agent.id not in there}
        rest = (
            self._described([agent.incarnation for agent in others.values()], []) if others else Snapshot(frozenset())
        )
        moved = (agent.id for agent in rest.agents if agent.id in others and agent.labels != others[agent.id].labels)
        failures = found.failures or rest.failures
        return Snapshot(found.agents, found.gone | rest.gone, failures, outside=frozenset(moved))

    def queue(self) -> SqsQueue | None:
        """Return the queue of state changes, if the configuration names one."""
        url = self.config.events_queue
        if url is None:
            return None
        named = re.match(r"https://sqs\.([a-z0-9-]+)\.", url)
        region = named[1] if named else self.config.regions[0]
        return SqsQueue(self.config.name, lambda: self._clients.sqs(region), url)

    def console_output(self, agent: Agent) -> str:
        """Return everything that the instance has printed on its console, "" if there is no output yet.

        Raises HostKeyUnknownError if AWS refuses, or if the beginning of the output may be lost.
        """
        region = self._region_of.get(agent.id)
        if region is None:
            raise HostKeyUnknownError("its region has not answered yet")
        try:
            ec2 = self._clients.ec2(region)
            try:
                answer = ec2.get_console_output(InstanceId=agent.incarnation, Latest=True)
            except ClientError as refused:
                if refused.response["Error"]["Code"] not in NO_LATEST:
                    raise
                # Only Nitro instances have the latest output; of others EC2 has the output collected at boot.
                answer = ec2.get_console_output(InstanceId=agent.incarnation)
        except AwsError as failed:
            raise HostKeyUnknownError(aws_error_text(failed)) from failed
        # botocore has decoded the base64 of `Output` already.
        output = answer.get("Output") or ""
        if (size := len(output.encode())) > WHOLE_CONSOLE:
            raise HostKeyUnknownError(
                f"the console has {size:,} bytes and EC2 keeps the last 64 KB only, so its beginning may be lost; "
                "print less while booting (kernel parameter `quiet`), or let the source trust another method"
            )
        return output

    def console_permission(self, agent: Agent) -> str | None:
        """Return which permission to read consoles is missing, None if none is; uses DryRun, without output."""
        try:
            self._clients.ec2(self._region_of[agent.id]).get_console_output(InstanceId=agent.incarnation, DryRun=True)
        except AwsError as answer:
            granted = isinstance(answer, ClientError) and answer.response["Error"]["Code"] == "DryRunOperation"
            return None if granted else aws_error_text(answer)
        return None

    def _filters(self) -> "list[FilterTypeDef]":
        return [{"Name": key, "Values": values} for key, values in self.config.filters.items()]

    def _ask(self, region: str) -> _Region:
        """Return the listing of one region."""
        answer = _Region(region)
        self._page(answer, self._filters())
        return answer

    def _described(self, ids: Sequence[str], filters: "list[FilterTypeDef]") -> Snapshot:
        """Return the state of these instances in all regions, if they match the filters."""

        def ask(region: str) -> _Region:
            answer = _Region(region)
            for at in range(0, len(ids), FILTER_VALUES):
                self._page(answer, [*filters, {"Name": "instance-id", "Values": ids[at : at + FILTER_VALUES]}])
            return answer

        answers = each(ask, self.config.regions)
        self._region_of |= {agent.id: answer.region for answer in answers for agent in answer.agents}
        return Snapshot(
            frozenset(agent for answer in answers for agent in answer.agents),
            frozenset[AgentId]().union(*(answer.gone for answer in answers)),
            tuple(answer.failure for answer in answers if answer.failure),
        )

    def _page(self, answer: _Region, filters: "list[FilterTypeDef]") -> None:
        """Read every page of one region; pages before a failure still count."""
        try:
            pages = self._clients.ec2(answer.region).get_paginator("describe_instances")
            for page in pages.paginate(Filters=filters, PaginationConfig={"PageSize": PAGE}):
                for reservation in page["Reservations"]:
                    self._sort(reservation.get("Instances", []), answer)
        except AwsError as failed:
            answer.failure = f"{answer.region}: {aws_error_text(failed)}"

    def _sort(self, instances: "Iterable[InstanceTypeDef]", answer: _Region) -> None:
        for instance in instances:
            id_ = AgentId(f"ec2:{instance['InstanceId']}")
            state = instance["State"]["Name"]
            address = instance.get("PrivateIpAddress" if self.config.address == "private" else "PublicIpAddress")
            if state in ENDED:
                answer.gone.add(id_)
            elif state == "running" and isinstance(address, str):
                answer.agents.add(self._agent(id_, instance, address))

    def _agent(self, id_: AgentId, instance: "InstanceTypeDef", address: str) -> Agent:
        labels = tuple(sorted((tag["Key"], tag["Value"]) for tag in instance.get("Tags", [])))
        zone = instance.get("Placement", {}).get("AvailabilityZone", "")
        return Agent(
            id=id_,
            incarnation=instance["InstanceId"],
            source=self.config.name,
            group=self.config.group,
            name=dict(labels).get("Name") or instance["InstanceId"],
            addresses=(address,),
            port=self.config.port,
            labels=(*labels, ("tunnelmgr:zone", zone)),
        )
