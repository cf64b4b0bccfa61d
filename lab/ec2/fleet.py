"""The instances in moto, with what its API lacks: setting states, freeing addresses, removing instances."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends

if TYPE_CHECKING:
    from collections.abc import Mapping

# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_InstanceState.html
_STATE_CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}


class Fleet:
    """Every instance of every region."""

    def __init__(self) -> None:
        self._subnets: dict[tuple[str, str], Any] = {}

    def launch(self, region: str, ip: str, tags: Mapping[str, str], *, public: bool) -> str:
        """Run an instance with this private address, and with a random public one if `public`; return its id."""
        reservation = ec2_backends[DEFAULT_ACCOUNT_ID][region].run_instances(
            "ami-12345678",
            1,
            None,
            [],
            subnet_id=self._subnet(region, ip).id,
            private_ip=ip,
            associate_public_ip=public,
            tags={"instance": dict(tags)},
            instance_type="t3.micro",
            is_instance_type_default=False,
            region_name=region,
        )
        return str(reservation.instances[0].id)

    def knows(self, instance: str) -> bool:
        """Report whether an instance with this id exists."""
        return any(backend.get_instance_by_id(instance) for backend in ec2_backends[DEFAULT_ACCOUNT_ID].values())

    def set_state(self, instance: str, name: str) -> None:
        """Set the state that the API shows."""
        state = self._find(instance)[1]._state  # noqa: SLF001 - moto itself has no pending or shutting-down state
        state.name, state.code = name, _STATE_CODES[name]

    def move(self, instance: str, ip: str) -> None:
        """Give a stopped instance another private address, as EC2 does with public ones, and start it."""
        _, found = self._find(instance)
        found.nics[0].private_ip_address = ip
        self.set_state(instance, "running")

    def terminate(self, instance: str) -> None:
        """Terminate an instance; unlike in moto, it loses its private address, which is free at once."""
        backend, found = self._find(instance)
        address = found.private_ip
        backend.terminate_instances([instance])
        backend.get_subnet(found.subnet_id).del_subnet_ip(address)
        found.nics[0].private_ip_address = None  # EC2 shows none either

    def forget(self, instance: str) -> None:
        """Remove an instance from every answer, as EC2 does an hour after its termination."""
        backend, found = self._find(instance)
        if found._state.name != "terminated":  # noqa: SLF001 - as above
            self.terminate(instance)
        for key, reservation in list(backend.reservations.items()):
            if any(one.id == instance for one in reservation.instances):
                del backend.reservations[key]

    def _find(self, instance: str) -> tuple[Any, Any]:
        for backend in ec2_backends[DEFAULT_ACCOUNT_ID].values():
            if found := backend.get_instance_by_id(instance):
                return backend, found
        raise KeyError(instance)

    def _subnet(self, region: str, ip: str) -> Any:  # noqa: ANN401 - moto's models are untyped
        network = str(ipaddress.ip_network(f"{ip}/16", strict=False))
        if (region, network) not in self._subnets:
            backend = ec2_backends[DEFAULT_ACCOUNT_ID][region]
            vpc = backend.create_vpc(network)
            self._subnets[region, network] = backend.create_subnet(vpc.id, network, availability_zone=f"{region}a")
        return self._subnets[region, network]
