"""The set-up in `docs/eventbridge.md` and its Terraform is what the code reads and needs."""

import json
import re
from pathlib import Path
from typing import Any

from tunnelmgr.discovery.aws_clients import _PERMISSIONS
from tunnelmgr.discovery.ec2_events import DETAIL_TYPE, OVER

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "eventbridge.md").read_text(encoding="utf-8")
TERRAFORM = (DOCS / "terraform" / "main.tf").read_text(encoding="utf-8")


def blocks() -> list[dict[str, Any]]:
    """Return the page's JSON: the rule, the queue's policy and the controller's."""
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]


def test_the_rule_matches_the_events_that_are_read() -> None:
    """The rule and the Terraform match each state that ends an agent, and `running`."""
    rule = blocks()[0]
    states = rule["detail"]["state"]

    assert (rule["source"], rule["detail-type"]) == (["aws.ec2"], [DETAIL_TYPE])
    assert {*OVER, "running"} <= set(states)
    assert DETAIL_TYPE in TERRAFORM
    assert f'"state" = {json.dumps(states)}' in TERRAFORM


def test_only_the_rule_may_send() -> None:
    """Another sender could end tunnels, so only the rule may send to the queue."""
    (statement,) = blocks()[1]["Statement"]

    assert statement["Principal"] == {"Service": "events.amazonaws.com"}
    assert list(statement["Condition"]["ArnEquals"]) == ["aws:SourceArn"]


def test_the_controllers_policy_has_only_what_it_calls() -> None:
    """The policy grants every call of the controller; `AssumeRole` is explained in the text."""
    granted: set[str] = set()
    for statement in blocks()[2]["Statement"]:
        actions = statement["Action"]
        granted |= {actions} if isinstance(actions, str) else set(actions)

    assert granted | {"sts:AssumeRole"} == set(_PERMISSIONS.values())
    assert set(re.findall(r'"((?:ec2|sts|sqs):\w+)"', TERRAFORM)) == {*_PERMISSIONS.values(), "sqs:SendMessage"}
