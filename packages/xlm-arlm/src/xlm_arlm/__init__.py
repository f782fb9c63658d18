"""xlm_arlm: see README.md."""
