output "queue_url" {
  description = "For `events_queue` of the source."
  value       = aws_sqs_queue.changes.url
}

output "controller_policy_arn" {
  description = "To attach to the controller's role."
  value       = aws_iam_policy.controller.arn
}
