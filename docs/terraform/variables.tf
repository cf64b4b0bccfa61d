variable "name" {
  description = "Name of the queue, the rule and the policy."
  type        = string
  default     = "tunnelmgr"
}

variable "agent_tag_key" {
  description = "Tag by which agents are known; their consoles may be read."
  type        = string
  default     = "role"
}

variable "agent_tag_value" {
  description = "Value of that tag."
  type        = string
  default     = "ci"
}

variable "assume_role_arn" {
  description = "Role that the source's `role` names, such as one in another account; empty for none."
  type        = string
  default     = ""
}
