# Sends this region's EC2 state changes to a queue that one tunnelmgr source reads, by an EventBridge rule.

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_region" "current" {}

locals {
  instances = "arn:${data.aws_partition.current.partition}:ec2:${data.aws_region.current.name}:${data.aws_caller_identity.current.account_id}:instance/*"
}

resource "aws_sqs_queue" "changes" {
  name = var.name

  # Polling has already found what an older event reports.
  message_retention_seconds  = 300
  visibility_timeout_seconds = 30

  # EventBridge cannot send to a queue that is encrypted with the AWS-managed KMS key.
  sqs_managed_sse_enabled = true
}

resource "aws_cloudwatch_event_rule" "changes" {
  name        = var.name
  description = "EC2 state changes, for tunnelmgr"

  event_pattern = jsonencode({
    "source"      = ["aws.ec2"]
    "detail-type" = ["EC2 Instance State-change Notification"]
    "detail"      = { "state" = ["running", "shutting-down", "terminated", "stopping"] }
  })
}

resource "aws_cloudwatch_event_target" "queue" {
  rule = aws_cloudwatch_event_rule.changes.name
  arn  = aws_sqs_queue.changes.arn
}

# Anyone who may send here can end tunnels, so only this rule may.
data "aws_iam_policy_document" "queue" {
  statement {
    actions   = ["sqs:SendMessage"]
    resources = [aws_sqs_queue.changes.arn]

    principals {
      type        = "Service"
      identifiers = ["events.amazonaws.com"]
    }

    condition {
      test     = "ArnEquals"
      variable = "aws:SourceArn"
      values   = [aws_cloudwatch_event_rule.changes.arn]
    }
  }
}

resource "aws_sqs_queue_policy" "changes" {
  queue_url = aws_sqs_queue.changes.id
  policy    = data.aws_iam_policy_document.queue.json
}

# The permissions that the controller needs.
data "aws_iam_policy_document" "controller" {
  statement {
    sid       = "Discover"
    actions   = ["ec2:DescribeInstances"] # has no resource-level permissions
    resources = ["*"]
  }

  statement {
    sid       = "Console"
    actions   = ["ec2:GetConsoleOutput"]
    resources = [local.instances]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/${var.agent_tag_key}"
      values   = [var.agent_tag_value]
    }
  }

  statement {
    sid       = "Events"
    actions   = ["sqs:ReceiveMessage", "sqs:DeleteMessage"]
    resources = [aws_sqs_queue.changes.arn]
  }

  dynamic "statement" {
    for_each = var.assume_role_arn == "" ? [] : [var.assume_role_arn]

    content {
      sid       = "AssumeRole"
      actions   = ["sts:AssumeRole"]
      resources = [statement.value]
    }
  }
}

resource "aws_iam_policy" "controller" {
  name        = "${var.name}-controller"
  description = "Discovery, consoles and events for tunnelmgr"
  policy      = data.aws_iam_policy_document.controller.json
}
