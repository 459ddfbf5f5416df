"""What a tenant has besides its runs, one file a noun, through a scoped connection. Called by the API and the worker.

    keys          who may call, and the handle that a call is made with
    catalog       agents and their versions
    sessions      conversations, and where their files are
    blobs         bytes by digest
    schedules     what runs again and again
    issuers       who signs exports, and whose are let in
    idempotency   answers by Idempotency-Key
    usage         what was paid

The rule: nothing here looks past the tenant of the connection's handle.
"""
