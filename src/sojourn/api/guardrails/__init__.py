"""/v1/guardrails: rules that a tenant has its runs judged by.

routes   the handlers       shapes   what they take and give       screen   what is said to a run, judged
"""
