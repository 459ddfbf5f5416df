"""A whole installation in one file, and back. Called by `sojourn backup` and `sojourn restore`.

    container   the file: what is in it and in which order, and that it is whole
    dump        the database of one moment into it, beside everything that goes on
    load        it into an empty database, whole or not at all

The rule: the file says what it needs to be read (format, migrations, root keys), and nothing is written of a file that
was not read to its end before.
"""
