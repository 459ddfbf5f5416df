"""Sessions: a conversation with its sandbox, and the files in it.

routes   make, list, close      files   list, read, write, delete      workspace   the sandbox behind the files
"""
