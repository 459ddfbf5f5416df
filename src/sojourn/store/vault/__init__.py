"""What is kept sealed, and the keys that seal it. Called by `identity`, the start and the operator's commands.

    sealed     a tenant's data keys, secrets and signing key, through a scoped connection
    roots      which root keys the installation needs
    rotation   changing keys of all tenants, with the login of the database's owner

The rule: nothing here opens a seal. What goes in and comes out is sealed or wrapped, and travels as a bind parameter.
"""
