"""Commands about guardrails."""
