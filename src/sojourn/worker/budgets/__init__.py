"""What a worker asks the pools of the day: whether a tenant has any, and whether there is room for a call."""
