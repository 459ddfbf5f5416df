"""`make bench-peers`: the same ten-step agent on Sojourn and on other products, measured in one run on one machine.

    environment   a venv for each product, from pinned requirements
    products/     one adapter for each product: starts it as its documentation says, and offers the same verbs
    adapter       what runs in a product's venv: reads verbs, answers
    verbs         what is said between the two
    peer          an adapter's process as the harness sees it, and what the kernel says of its processes
    model         the scripted model endpoint that all of them ask
    measures      B1 to B6 and B9, through the verbs alone
    figures       the rows of the table
    page, chart   what is written to docs/benchmarks

The rule: Sojourn goes the same way as the others, through an adapter, and no time is taken inside a product.
"""
