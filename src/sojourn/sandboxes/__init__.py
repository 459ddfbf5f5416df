"""Where model-written code runs: the port (`sandbox.py`) and its adapters beside it."""
