"""For operators: is the process up, is it ready, what does it do.

health   /healthz and /readyz      metrics   /metrics
"""
