"""How workers share what there is too little of. Called by the worker, through `queue`, and by the command line.

turns    runs among workers, so that every tenant gets its turn
slots    the calls of a provider among workers
limits   what the operator allows each tenant
"""
