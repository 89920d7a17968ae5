"""How files become tables."""
