"""Runs: started, looked at, talked to and stopped.

create   a request into the first row of a run    routes      the handlers
wait     holding an answer until the run ended    shapes      what callers send and get
trace    where the time and the money went        transcript  what was said
"""
