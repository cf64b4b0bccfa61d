"""Searches for host key evidence, each in a task of its own."""

import asyncio
from dataclasses import dataclass, field

from tunnelmgr.controller import Controller
from tunnelmgr.core.reconcile import ExamineKey, Search
from tunnelmgr.daemon.active_configuration import ActiveConfiguration
from tunnelmgr.daemon.trust_methods import TrustInputs, methods_of
from tunnelmgr.trust.resolver import Resolver


@dataclass(slots=True)
class EvidenceSearches:
    """Performs the controller's searches with the trust methods that the configuration names."""

    tasks: asyncio.TaskGroup
    controller: Controller
    configuration: ActiveConfiguration
    inputs: TrustInputs
    _resolver: Resolver = field(init=False)
    _running: set[asyncio.Task[None]] = field(default_factory=set)

    def follow(self) -> None:
        """Use the trust methods of the configuration as it is now."""
        prepared = self.configuration.prepared
        methods = {source.config.name: methods_of(source, prepared.config, self.inputs) for source in prepared.sources}
        self._resolver = Resolver(methods, prepared.rules)

    def search(self, action: Search) -> None:
        """Start a search, which ends in an event."""
        if isinstance(action, ExamineKey):
            search = self._resolver.examine(action.agent, action.keys, self.inputs.scanner, self.controller)
        else:
            search = self._resolver.seek(action.agent, action.at_least, self.controller)
        task = self.tasks.create_task(search, name=f"evidence {action.agent.id}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def stop(self) -> None:
        """Cancel every search."""
        for task in self._running:
            task.cancel()
