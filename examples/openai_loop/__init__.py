"""A plain loop on the official OpenAI SDK: `python -m examples.openai_loop --help`."""
