"""What a worker does for those who want to be told: it sends webhooks, and looks for what alerts are about."""
