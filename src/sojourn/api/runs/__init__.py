"""Runs: started, looked at, talked to and stopped.

create   a request into the first row of a run    routes      the handlers
hear     what a user says, into a message         shapes      what callers send and get
wait     holding an answer until the run ended    trace       where the time and the money went
holds    a run on hold, and let go on             signals     events of the world, from callers and as webhooks
"""
