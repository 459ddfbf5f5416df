"""What is kept how long, and how it goes. Called by the API, the worker's tidying, the metrics and the doctor.

    expiry     what has expired, a batch at a time
    deletion   a run or a session that its owner gives up
    sizes      how large everything is, and what is past its time

The rule: the doors of 0006_retention.sql decide what may go, each in one short transaction.
"""
