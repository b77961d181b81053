"""The one model of the measured project."""
