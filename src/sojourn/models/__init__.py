"""Who thinks: the model port, and the adapters that speak to providers."""
