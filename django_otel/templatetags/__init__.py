"""Template tags and filters. Imports the packages up to business."""
