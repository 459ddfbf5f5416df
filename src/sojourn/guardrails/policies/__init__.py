"""Calls decided by policies in a language of their own, by an engine that a deployment may have or not.

    engine    what an engine is asked and says, and what stands in where there is none
    bounds    policies that are too long, too deep or too slow, told apart before an engine reads them
    mapping   a call as Cedar reads it
    cedar     the engine that there is: Cedar, through cedarpy

`judging` asks it. The rule: what cannot be decided is refused, and no policy can end or hold the process that reads it.
"""
