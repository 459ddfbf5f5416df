"""What Sojourn costs, measured on this machine in one run: `make bench`.

    __main__   runs every bench, one after the other, each in a process of its own, and prints one table
    figure     one line of that table, and how a bench hands it over

A bench is a module with a `main()` that ends in `figure.report(...)`. The rule: a figure stands beside its target, and
one that misses it says so.
"""
