"""What is kept sealed: root keys, data keys, tenants' secrets, and how all of them are renewed."""
