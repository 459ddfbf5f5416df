"""The demonstration: an agent on real data, and a worker that is killed in the middle.

    run            the story, from an empty folder to the checks; `make demo`
    machinery      the processes and the HTTP calls that the story needs, as any user of Sojourn would make them
    figures        the same figures computed again from the data, and what is wrong with a report
    script.toml    what the simulated model thinks: commands, and no figure
    local_model    one tool call by a small real model, offline; `make demo-local-model`
    llama          that model's server
    data/          a public data set, with its source and licence

The rule: whatever is claimed is checked, and the exit code says whether it held.
"""
