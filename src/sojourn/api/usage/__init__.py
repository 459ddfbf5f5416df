"""What a tenant paid for models: sums of the ledger, as JSON and as a sheet."""
