"""What Sojourn costs, measured on this machine in one run: `make bench`.

    __main__   runs every bench, one after the other, each in a process of its own, and prints one table
    figure     one line of that table, and how a bench is asked and hands it over
    place      data folders and databases, of which nothing is left

A bench is a module that is asked through `figure.chosen(...)` and ends in `figure.report(...)`. The rule: a figure
stands beside its target, and one that misses it says so; and each bench has a small size, in which a test runs it.
"""
