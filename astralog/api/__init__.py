"""The blueprints, one per file."""
