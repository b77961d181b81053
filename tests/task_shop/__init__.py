"""A shop that sends its work to task workers."""
