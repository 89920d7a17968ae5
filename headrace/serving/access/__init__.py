"""Who may call what: tokens, signing keys, TLS, the audit log."""
