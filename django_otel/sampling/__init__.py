"""Sampling: the policy, the decision and the rate limit.

Pure: reads only the clock. Imports base, metrics and redaction.
"""
