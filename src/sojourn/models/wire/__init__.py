"""What moves bytes between us and a provider, whatever the dialect."""
