"""Stops by a key of the tenant: the switch that ends or holds what is named, and the report of what is left.

routes   /v1/admin/stops          shapes   the bodies of requests and answers
"""
