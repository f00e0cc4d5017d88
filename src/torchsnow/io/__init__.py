"""Files: atomic writes, locks, tables and YAML within limits, and clear words for what a machine refuses."""
