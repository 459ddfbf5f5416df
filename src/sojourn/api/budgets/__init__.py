"""/v1/budgets: what the tenant and each of its users may spend in a day, and what is left of it.

routes   the pools, and the bounds that the tenant's admin sets
shapes   what they take and give
"""
