"""Django's own layers, one module each; `apps` connects their `install` and `uninstall` to the settings."""
