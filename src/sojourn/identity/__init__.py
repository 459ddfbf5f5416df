"""Who may do what: scopes, and the principal behind a token. Called by the API."""
