"""The management command `otel`. May import every other package."""
