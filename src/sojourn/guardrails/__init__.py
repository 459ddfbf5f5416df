"""Guardrails: named rules that every text and every call of a tenant's runs is judged by, wherever it passes.

    rules      what a rule is, and which ones are taken
    folding    a text as the eye reads it, without what hides in it
    detectors  what looks like a person's data, or like a secret
    arguments  the texts and the hosts in a call's arguments
    judging    the rules of a tenant, made ready, and what they say
    in_force   the rules of all tenants as this process knows them, at most a second old

The API and the workers judge with it. The rule: judging is a pure function of rules and text, it takes a time that is
bounded by their sizes, and what it says names the rule and never the text.
"""
