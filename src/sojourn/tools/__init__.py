"""What an agent can do: the tool port, the tools that run in the session's sandbox, and operators' own functions."""
