"""Schema steps, numbered; each stays as it is once released."""
