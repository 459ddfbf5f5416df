"""What waits for somebody, and the answers.

shapes   what callers send and get
judge    whether an answer is taken, and why not
routes   /v1/approvals: the inbox over all runs, one question, its answer
results  the caller's own tools: what they returned
"""
