"""From results.json to tables, pictures and text."""
